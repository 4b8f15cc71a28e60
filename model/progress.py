"""Progress of long operations, on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

EVERY = 10.0  # seconds between lines when stderr is not a terminal


class Tick(Protocol):
    """Callback that reports finished work."""

    def __call__(self, images: int, found: bool = False) -> None:
        """Advance by `images`. `found` excludes images that an interrupted call made earlier from the rate."""


def say_nothing(images: int, found: bool = False) -> None:
    """A `Tick` that shows no progress."""


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Tick]:
    """Show progress on stderr: a bar if it is a terminal, otherwise a line every ten seconds."""
    if sys.stderr.isatty():
        # Imported here, because the service does not need it.
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

            def advance(images: int, found: bool = False) -> None:
                bar.advance(task, images)

            yield advance
        return
    done = fresh = 0
    began = said = time.monotonic()

    def tick(images: int, found: bool = False) -> None:
        nonlocal done, fresh, said
        done += images
        fresh += 0 if found else images
        now = time.monotonic()
        if now - said >= EVERY:
            said = now
            rate = fresh / (now - began)
            of, left = (
                (f" of {total:,}", f", {(total - done) / rate:,.0f} s left" if rate else "") if total else ("", "")
            )
            print(f"{what}: {done:,}{of} images, {rate:,.0f}/s{left}", file=sys.stderr)

    yield tick
