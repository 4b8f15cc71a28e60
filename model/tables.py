"""Write scored images as text: a table for people, JSON lines or CSV for programs.

Rows are streamed. Only selection at a false discovery rate has to wait for the last row.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import TextIO

import numpy as np

from ddaebm.model.bulk import Scored
from ddaebm.model.errors import DataError
from ddaebm.model.files import naming
from ddaebm.model.ood.conformal import fdr_threshold
from ddaebm.model.text import printable


@dataclass(frozen=True, slots=True)
class Judged:
    """A scored image with its verdict."""

    image: Scored
    is_ood: bool | None  # None if the image could not be read
    selected: bool | None = None  # None unless images are selected at a false discovery rate

    @property
    def verdict(self) -> bool | None:
        """`selected` if it is set, otherwise `is_ood`."""
        return self.is_ood if self.selected is None else self.selected


@dataclass
class Totals:
    """Counts for the summary line."""

    images: int = 0
    ood: int = 0
    unreadable: int = 0

    def __str__(self) -> str:
        scored = self.images - self.unreadable
        share = f" ({self.ood / scored:.1%})" if scored else ""
        return f"{self.images:,} images: {self.ood:,} out of distribution{share}, {self.unreadable:,} unreadable"


def judge(images: Iterable[Scored], alpha: float) -> Iterator[Judged]:
    """Add the verdict at `alpha` to each image."""
    for image in images:
        yield Judged(image, None if image.p_value is None else image.p_value <= alpha)


def select(rows: Iterable[Judged], fdr: float) -> Iterator[Judged]:
    """Select images at a false discovery rate of at most `fdr` with the Benjamini–Hochberg procedure.

    Rows are stored in a temporary file until the last one has arrived, so that memory use does not grow.

    Raises:
        DataError: `rows` raised it. The rows before it are selected and yielded first.
    """
    counts: Counter[float] = Counter()  # few distinct values: p-values are multiples of 1/(n + 1)
    ended = None
    with naming(Path(gettempdir())), TemporaryFile("w+", encoding="utf-8") as spool:
        try:
            for row in rows:
                spool.write(json.dumps(asdict(row)) + "\n")
                if row.image.p_value is not None:
                    counts[row.image.p_value] += 1
        except DataError as error:
            ended = error
        threshold = fdr_threshold(np.array([*counts]), fdr, np.array([*counts.values()]))
        spool.seek(0)
        for line in spool:
            fields = json.loads(line)
            image = Scored(**fields["image"])
            yield Judged(image, fields["is_ood"], None if image.p_value is None else image.p_value <= threshold)
    if ended:
        raise ended


def count(rows: Iterable[Judged], totals: Totals) -> Iterator[Judged]:
    """Yield the rows unchanged and count them in `totals`."""
    for row in rows:
        totals.images += 1
        totals.ood += row.verdict is True
        totals.unreadable += row.is_ood is None
        yield row


def write_table(rows: Iterable[Judged], out: TextIO) -> None:
    """Write one aligned line per image under a header."""
    out.write("verdict   p_value   ood_score  because  image\n")
    for row in rows:
        image = row.image
        if image.error is not None:
            out.write(f"error                                   {printable(f'{image.name}: {image.error}')}\n")
        else:
            verdict = "ood" if row.verdict else "in"
            numbers = f"{image.p_value:9.5f} {image.ood_score:11.2f}  {image.because:<7}"
            out.write(f"{verdict:<7} {numbers}  {printable(image.name)}\n")


def write_json(rows: Iterable[Judged], out: TextIO) -> None:
    """Write JSON lines, one object per image, with the fields of `POST /v1/scores`."""
    for row in rows:
        fields = asdict(row.image) | {"is_ood": row.is_ood, "selected": row.selected}
        out.write(json.dumps({name: value for name, value in fields.items() if value is not None}) + "\n")


def write_csv(rows: Iterable[Judged], out: TextIO) -> None:
    """Write CSV, one line per image under a header. Numbers of one column, one per level, are separated by spaces."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["index", "name", "is_ood", "selected", "p_value", "ood_score", "energies", "energy_quantiles",
                     "because", "box", "resized", "error"])  # fmt: skip
    for row in rows:
        image = row.image
        flags = ["" if flag is None else str(flag).lower() for flag in (row.is_ood, row.selected, image.resized)]
        levels = [" ".join(map(str, values or [])) for values in (image.energies, image.energy_quantiles)]
        numbers = (image.p_value, image.ood_score, *levels)
        box = " ".join(map(str, image.box or []))
        writer.writerow([image.index, image.name, *flags[:2], *numbers, image.because, box, flags[2], image.error])


WRITERS = {"table": write_table, "json": write_json, "csv": write_csv}
