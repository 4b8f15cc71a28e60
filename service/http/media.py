"""Media types: of a request body, and the one to answer with."""

import re
from collections.abc import Sequence

from ddaebm.service.http.errors import Problem

JSON, PNG, ZIP, NPY = "application/json", "image/png", "application/zip", "application/x-npy"
FORM = "multipart/form-data"
BINARY = {"schema": {"type": "string", "format": "binary"}}  # how OpenAPI describes bytes


def media_type_of(content_type: str) -> str:
    """Media type of a Content-Type, without its parameters; empty if there is none."""
    return content_type.partition(";")[0].strip().lower()


def choose_media_type(accept: str, offered: Sequence[str]) -> str:
    """The best of `offered` by the Accept header (RFC 9110 section 12.5.1); the first one in a tie.

    Raises:
        Problem: 406, none is acceptable; 400, the header is longer than any client's.
    """
    if len(accept) > 4096:
        raise Problem(400, "bad-accept", "the Accept header is over 4096 characters")
    best = max(offered, key=lambda media_type: _quality(accept or "*/*", media_type))
    if not _quality(accept or "*/*", best):
        raise Problem(406, "not-acceptable", f"Accept must allow one of {', '.join(offered)}")
    return best


def _quality(accept: str, media_type: str) -> float:
    """q of the most specific range in `accept` that covers `media_type`, else 0."""
    ranges = {media_type: 2, media_type.split("/")[0] + "/*": 1, "*/*": 0}
    best = (-1, 0.0)
    for item in accept.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        if name not in ranges:
            continue
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        if re.fullmatch(r"\d(\.\d{0,9})?", quality):  # ignore ranges with an invalid weight
            best = max(best, (ranges[name], float(quality)))
    return best[1]
