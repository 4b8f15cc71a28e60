"""How far long work has come, on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 10.0  # seconds between plain lines


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """To be told of images done: a bar where stderr is a terminal, else a line every ten seconds."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total)
            yield lambda images: bar.advance(task, images)
        return
    done, began = 0, time.monotonic()
    said = began

    def tick(images: int) -> None:
        nonlocal done, said
        done += images
        now = time.monotonic()
        if now - said >= EVERY:
            said = now
            of = f" of {total:,}" if total else ""
            print(f"{what}: {done:,}{of} images, {done / (now - began):,.0f}/s", file=sys.stderr)

    yield tick
