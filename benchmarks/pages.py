"""Sections of docs pages that benchmarks write."""

from pathlib import Path

from ddaebm.model.files import write_file


def write_section(doc: Path, begin: str, end: str, section: str) -> None:
    """Replace the text between the marks `begin` and `end` in `doc`.

    Raises:
        SystemExit: a mark is missing.
    """
    before, found, rest = doc.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{doc} has no {begin} and {end} to write between")
    write_file(doc, f"{before}{begin}\n{section}\n{end}{after}".encode())
