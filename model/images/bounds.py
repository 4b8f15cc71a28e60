"""Bounds on image files that are made to be slow: millions of parts that Pillow goes through one by one, in Python.

No limit on bytes or pixels finds them: a TIFF of 2 MiB took 20 s, and no deadline can stop a decoder.
"""

import io
import struct

from PIL.TiffImagePlugin import PREFIXES

from ddaebm.model.errors import ImageFormatError

MAX_READS = 200_000  # of one file: a chunk, marker, sub-block or run of a BMP takes one to three, of 1 to 4 µs each
MAX_TIFF_TAGS = 1000
MAX_STRIPS = 16_384  # one a row of the tallest image
MAX_RATIONALS = 64  # of one tag: no tag has over a dozen
MAX_EXIF_BYTES = 2**18  # as binary or written out; a segment of a JPEG holds 2^16
# Of a JPEG. Pillow adds EXIF segments up one by one, in quadratic time, and goes through Photoshop's resources.
MAX_JPEG_PARTS = {b"Exif\0\0": 16, b"8BIM": 2000}

_STRIP_TAGS = {273, 279, 324, 325}  # offsets and sizes of strips and tiles
_RATIONALS = {5, 10}  # types, unsigned and signed


class CountedReads(io.BytesIO):
    """A file's bytes, which may be read in so many pieces and no more.

    Raises:
        ImageFormatError: in `read`.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ImageFormatError(f"the file is in more than {MAX_READS} pieces; save it anew, as a PNG for example")
        return super().read(size)


def check_parts(data: bytes) -> None:
    """Look at a file before Pillow opens it, where it would be slow before it has read so many pieces.

    Raises:
        ImageFormatError: as `check_tiff`, or a JPEG over `MAX_JPEG_PARTS`.
        struct.error: as `check_tiff`.
    """
    if data.startswith(tuple(PREFIXES)):
        check_tiff(data)
    if data.startswith(b"\xff\xd8") and any(data.count(part) > most for part, most in MAX_JPEG_PARTS.items()):
        raise ImageFormatError("the JPEG has more EXIF segments or Photoshop resources than any program writes")


def check_tiff(data: bytes) -> None:
    """Look at the first directory of a TIFF, which Pillow unfolds when it opens one.

    Raises:
        ImageFormatError: more tags, strips or rational numbers than an image has.
        struct.error: the directory is cut off.
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
