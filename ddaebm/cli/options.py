"""Help texts and parsers that several commands share."""

import re

import typer

BUNDLE = "shipped bundle by name, or a bundle folder"
CLASSIFIER = "shipped classifier by name, or a file of `classifier`, to measure samples by"
MAX_PIXELS = "most pixels of one image; JPEGs over 16 megapixels are decoded at reduced size"
KEEP_PARTS = "if images were added to the data since the run began, leave them out"
PATH = "folder, .zip, .tar[.gz|.zst], .npy, .npz or IDX file of images, or hf:NAME[:split]"


def assignment(text: str) -> tuple[str, str]:
    """NAME=VALUE -> (name, value)."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE")
    return name, value


def parse_size(text: str | None) -> tuple[int, int] | None:
    """N or WIDTHxHEIGHT -> (height, width)."""
    if text is None:
        return None
    sides = re.fullmatch(r"(\d+)(?:x(\d+))?", text.lower())
    if not sides:
        raise typer.BadParameter(f"--size is N or WIDTHxHEIGHT in pixels, not {text!r}")
    return int(sides[2] or sides[1]), int(sides[1])
