"""Decode what is surely quick at once, and make jobs for the decoder processes of the rest."""

from collections.abc import Callable, Sequence

import numpy as np

from ddaebm.model.errors import ImageError, ImageTooLargeError
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.decode import Decoded, check_size, convert
from ddaebm.model.images.formats import Entry
from ddaebm.model.images.header import JPEG, PNG, SIGNATURES, stated_size
from ddaebm.model.images.readers import open_entry
from ddaebm.service.decoding.slot import Job
from ddaebm.service.settings import Settings

# PNG and JPEG take time in proportion to their pixels and bytes, whatever they hold: 30 ms at most within these.
_PIXELS = 2**16  # of one image
_BYTES, _BYTES_PER_PIXEL = 2**12, 4  # of its file
_REQUEST_PIXELS = 2**20  # of all images of a request
_UNKNOWN = 1_000_000  # pixels that a file counts for whose header does not tell


def decode_quick(
    entries: Sequence[Entry], contract: Contract, settings: Settings, check: Callable[[], None]
) -> list[Decoded | ImageError | Job]:
    """Each entry's pixels, its error, or a job. Sizes are checked as the headers state them, before any decoding.

    Args:
        check: called before each image; may raise, to stop.
    """
    sizes = [_stated_size(entry) for entry in entries]
    quick = sum(width * height for width, height in filter(None, sizes)) <= _REQUEST_PIXELS
    left = settings.max_request_pixels
    outcomes: list[Decoded | ImageError | Job] = []
    for entry, size in zip(entries, sizes, strict=True):
        check()
        try:
            content = entry.content
            if isinstance(content, ImageError):
                raise content
            assert isinstance(content, bytes | np.ndarray)  # PIL images come by the Python API alone
            if size:
                check_size(*size, settings.max_image_pixels)
            pixels = size[0] * size[1] if size else _UNKNOWN
            if pixels > left:
                raise ImageTooLargeError(
                    f"the request's images are over {settings.max_request_pixels} pixels together; send fewer at once"
                )
            left -= pixels
            decoded = _decode(entry, contract, settings) if quick and _is_quick(entry, pixels) else None
            outcomes.append(decoded or Job(content, contract, settings.max_image_pixels, pixels))
        except ImageError as error:
            outcomes.append(error)
    return outcomes


def _stated_size(entry: Entry) -> tuple[int, int] | None:
    if isinstance(entry.content, np.ndarray):
        return entry.content.shape[1], entry.content.shape[0]
    return stated_size(entry.content) if isinstance(entry.content, bytes) else None


def _is_quick(entry: Entry, pixels: int) -> bool:
    content = entry.content
    if isinstance(content, np.ndarray):
        return pixels <= _PIXELS
    assert isinstance(content, bytes)
    if not content.startswith(SIGNATURES):  # refused by its first bytes
        return True
    small = pixels <= _PIXELS and len(content) <= _BYTES + _BYTES_PER_PIXEL * pixels
    return small and content.startswith((PNG, JPEG))


def _decode(entry: Entry, contract: Contract, settings: Settings) -> Decoded | None:
    """The image, or None if it is larger than its header states."""
    image = open_entry(entry, settings.max_image_pixels)
    return convert(image, contract) if image.width * image.height <= _PIXELS else None
