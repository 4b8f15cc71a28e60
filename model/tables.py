"""Scored images as text: a table for people, JSON lines or CSV for programs; each row is written as it comes."""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TextIO

from model.bulk import Scored


@dataclass
class Totals:
    images: int = 0
    ood: int = 0
    unreadable: int = 0

    def __str__(self) -> str:
        scored = self.images - self.unreadable
        share = f" ({self.ood / scored:.1%})" if scored else ""
        return f"{self.images:,} images: {self.ood:,} out of distribution{share}, {self.unreadable:,} unreadable"


def count(rows: Iterable[Scored], alpha: float, totals: Totals) -> Iterator[tuple[Scored, bool | None]]:
    """Each row with its verdict (None where it could not be read), counted into `totals`."""
    for row in rows:
        is_ood = None if row.p_value is None else row.p_value <= alpha
        totals.images += 1
        totals.ood += is_ood is True
        totals.unreadable += is_ood is None
        yield row, is_ood


def write_table(rows: Iterable[tuple[Scored, bool | None]], out: TextIO) -> None:
    out.write("verdict   p_value   ood_score  image\n")
    for row, is_ood in rows:
        if row.error is not None:
            out.write(f"error                          {row.name}: {row.error}\n")
        else:
            out.write(f"{'ood' if is_ood else 'in':<7} {row.p_value:9.5f} {row.ood_score:11.2f}  {row.name}\n")


def write_json(rows: Iterable[tuple[Scored, bool | None]], out: TextIO) -> None:
    """JSON lines, one object an image, with the fields of `POST /v1/scores`."""
    for row, is_ood in rows:
        fields = asdict(row) | {"is_ood": is_ood}
        out.write(json.dumps({name: value for name, value in fields.items() if value is not None}) + "\n")


def write_csv(rows: Iterable[tuple[Scored, bool | None]], out: TextIO) -> None:
    """One line an image under a header; energies in one column, separated by spaces."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["index", "name", "is_ood", "p_value", "ood_score", "energies", "resized", "error"])
    for row, is_ood in rows:
        verdict = "" if is_ood is None else str(is_ood).lower()
        resized = "" if row.resized is None else str(row.resized).lower()
        energies = " ".join(map(str, row.energies or []))
        writer.writerow([row.index, row.name, verdict, row.p_value, row.ood_score, energies, resized, row.error])


WRITERS = {"table": write_table, "json": write_json, "csv": write_csv}
