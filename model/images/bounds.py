"""Limits against image files that are crafted to be slow to decode.

Such a file has millions of tiny parts, which Pillow processes one by one in Python. Limits on bytes or pixels do not
catch it: a TIFF of 2 MiB took 20 s. A timeout does not help either, because a running decoder cannot be stopped.
"""

import io
import struct

from PIL.TiffImagePlugin import PREFIXES

from ddaebm.model.errors import ImageFormatError

MAX_READS = 200_000  # per file; a chunk, marker, sub-block or BMP run takes one to three reads of 1 to 4 µs
MAX_TIFF_TAGS = 1000
MAX_STRIPS = 16_384  # one for each row of the tallest image
MAX_RATIONALS = 64  # per tag; real tags have at most a dozen
MAX_EXIF_BYTES = 2**18  # binary or as hexadecimal text; one JPEG segment holds 2^16
# Limits for a JPEG. Pillow concatenates EXIF segments in quadratic time, and parses each Photoshop resource.
MAX_JPEG_PARTS = {b"Exif\0\0": 16, b"8BIM": 2000}

_STRIP_TAGS = {273, 279, 324, 325}  # offsets and sizes of strips and tiles
_RATIONALS = {5, 10}  # field types: unsigned and signed


class CountedReads(io.BytesIO):
    """The bytes of a file, with a limit of `MAX_READS` on the number of reads.

    Raises:
        ImageFormatError: By `read`, beyond the limit.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ImageFormatError(f"the file has more than {MAX_READS} parts; save it again, for example as PNG")
        return super().read(size)


def check_parts(data: bytes) -> None:
    """Check a file before Pillow opens it, for slow files that `CountedReads` does not catch.

    Raises:
        ImageFormatError: As `check_tiff`, or a JPEG exceeds `MAX_JPEG_PARTS`.
        struct.error: As `check_tiff`.
    """
    if data.startswith(tuple(PREFIXES)):
        check_tiff(data)
    if data.startswith(b"\xff\xd8") and any(data.count(part) > most for part, most in MAX_JPEG_PARTS.items()):
        raise ImageFormatError(
            "the JPEG has too many EXIF segments or Photoshop resources; save it again without metadata"
        )


def check_tiff(data: bytes) -> None:
    """Check the first directory of a TIFF, which Pillow parses when it opens the file.

    Raises:
        ImageFormatError: There are more tags, strips or rational numbers than a real image has.
        struct.error: The directory is truncated.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2] == 43  # BigTIFF
    (start,) = struct.unpack_from(order + "Q", data, 8) if big else struct.unpack_from(order + "L", data, 4)
    count_form, entry_form = (order + "Q", order + "HHQ8x") if big else (order + "H", order + "HHL4x")
    (count,) = struct.unpack_from(count_form, data, start)
    if count > MAX_TIFF_TAGS:
        raise ImageFormatError(f"the TIFF has over {MAX_TIFF_TAGS} tags")
    start += struct.calcsize(count_form)
    for i in range(count):
        tag, kind, values = struct.unpack_from(entry_form, data, start + i * struct.calcsize(entry_form))
        if tag in _STRIP_TAGS and values > MAX_STRIPS:
            raise ImageFormatError(f"the TIFF is in more than {MAX_STRIPS} strips or tiles")
        if kind in _RATIONALS and values > MAX_RATIONALS:
            raise ImageFormatError(f"a tag of the TIFF has over {MAX_RATIONALS} rational numbers")
