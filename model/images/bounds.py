"""Limits against image files that are crafted to be slow or large to decode.

Such a file has millions of tiny parts, which Pillow processes one by one in Python, or names the same bytes many times.
Limits on bytes or pixels do not catch it: a TIFF of 2 MiB took 20 s.
"""

import io
import math
import struct
from typing import NamedTuple

from PIL.TiffImagePlugin import PREFIXES

from ddaebm.model.errors import ImageFormatError

MAX_READS = 200_000  # per file; a chunk, marker, sub-block or BMP run takes one to three reads of 1 to 4 µs
MAX_TIFF_TAGS = 1000
MAX_STRIPS = 16_384  # one for each row of the tallest image
MAX_RATIONALS = 64  # per tag; real tags have at most a dozen
MAX_NUMBERS = 500_000  # in all tags together, as Pillow takes 50 bytes for each
_MIN_TILED = 4_000_000  # pixels of tiles that any TIFF may have, however small the image

_WIDTH, _HEIGHT, _BITS, _SAMPLES, _ROWS, _FORMAT = 256, 257, 258, 277, 278, 339  # tags
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_OFFSETS, _SIZES = {273, 324}, {279, 325}  # of strips and tiles
_SIDES = (_WIDTH, _HEIGHT, _ROWS, _TILE_WIDTH, _TILE_HEIGHT)
_FORMS = {1: "B", 2: "B", 3: "H", 4: "L", 5: "LL", 6: "b", 7: "B", 8: "h", 9: "l", 10: "ll", 11: "f", 12: "d", 13: "L",
          16: "Q", 17: "q", 18: "Q"}  # fmt: skip  # field types
_BLOBS = {1, 2, 7}  # types whose values Pillow keeps as bytes
_RATIONALS = {5, 10}  # unsigned and signed
_FORMATS = {2: "signed integer", 3: "floating-point", 5: "complex integer", 6: "complex"}  # values of _FORMAT


class CountedReads(io.BytesIO):
    """The bytes of a file, with a limit of `MAX_READS` on the number of reads.

    Raises:
        ImageFormatError: By `read`, beyond the limit.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data
        self.left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ImageFormatError(f"the file has more than {MAX_READS} parts; save it again, for example as PNG")
        return super().read(size)


class Field(NamedTuple):
    """One field of a TIFF's directory."""

    at: int  # its own place in the file
    kind: int  # field type
    number: int  # of values
    place: int  # of the first value in the file


def check_parts(data: bytes) -> None:
    """Check a file before Pillow opens it, for slow files that `CountedReads` does not catch.

    Raises:
        ImageFormatError: As `check_tiff`.
        struct.error: As `check_tiff`.
    """
    if data.startswith(tuple(PREFIXES)):
        check_tiff(data)


def check_tiff(data: bytes) -> None:
    """Check the first directory of a TIFF, which Pillow parses when it opens the file.

    Raises:
        ImageFormatError: There are more tags, values, strips or tiles than a real image has; or its pixels are not
            whole numbers of a known range.
        struct.error: The directory is truncated.
    """
    order = "<" if data[:2] == b"II" else ">"
    fields = tiff_fields(data)
    blobs = numbers = 0
    for tag, field in fields.items():
        if tag in _OFFSETS | _SIZES and field.number > MAX_STRIPS:
            raise ImageFormatError(f"the TIFF is in more than {MAX_STRIPS} strips or tiles")
        if field.kind in _RATIONALS and field.number > MAX_RATIONALS:
            raise ImageFormatError(f"a tag of the TIFF has over {MAX_RATIONALS} rational numbers")
        if field.kind in _BLOBS:
            blobs += field.number
        else:
            numbers += field.number
    if numbers > MAX_NUMBERS or blobs > len(data):
        raise ImageFormatError("the tags of the TIFF have more values than an image needs; save it again without them")
    sides = {tag: _value(data, order, fields[tag]) for tag in _SIDES if tag in fields}
    _check_samples(data, order, fields)
    if _WIDTH in sides and _HEIGHT in sides:
        _check_pieces(fields, sides, _value(data, order, fields[_SAMPLES]) if _SAMPLES in fields else 1)


def tiff_fields(data: bytes) -> dict[int, Field]:
    """The fields of the first directory by tag; of a tag that occurs twice, the last one.

    Raises:
        ImageFormatError: There are over `MAX_TIFF_TAGS`.
        struct.error: The directory is truncated.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")  # BigTIFF
    (start,) = struct.unpack_from(order + "Q", data, 8) if big else struct.unpack_from(order + "L", data, 4)
    count_form, entry_form, offset_form = ("Q", "HHQ", "Q") if big else ("H", "HHL", "L")
    (count,) = struct.unpack_from(order + count_form, data, start)
    if count > MAX_TIFF_TAGS:
        raise ImageFormatError(f"the TIFF has over {MAX_TIFF_TAGS} tags")
    start += struct.calcsize(order + count_form)
    head, room = struct.calcsize(order + entry_form), struct.calcsize(order + offset_form)
    fields = {}
    for i in range(count):
        at = start + i * (head + room)
        tag, kind, values = struct.unpack_from(order + entry_form, data, at)
        (offset,) = struct.unpack_from(order + offset_form, data, at + head)
        inline = values * struct.calcsize("=" + _FORMS.get(kind, "B")) <= room
        fields[tag] = Field(at, kind, values, at + head if inline else offset)
    return fields


def _values(data: bytes, order: str, field: Field, most: int) -> tuple[int, ...]:
    if field.kind not in (1, 3, 4, 16) or not 1 <= field.number <= most:
        raise ImageFormatError("a tag of the TIFF that describes its pixels is not a number; save it again")
    return struct.unpack_from(f"{order}{field.number}{_FORMS[field.kind]}", data, field.place)


def _value(data: bytes, order: str, field: Field) -> int:
    return _values(data, order, field, 1)[0]


def _check_samples(data: bytes, order: str, fields: dict[int, Field]) -> None:
    """Pillow reads some of these as if they were others, 16 times too dark or black."""
    form = _values(data, order, fields[_FORMAT], 16) if _FORMAT in fields else (1,)
    bits = _values(data, order, fields[_BITS], 16) if _BITS in fields else (1,)
    for kind in form:
        if kind in _FORMATS:
            raise ImageFormatError(f"{_FORMATS[kind]} images have no known range; send 8- or 16-bit pixels")
    if max(bits) > 16:
        raise ImageFormatError(f"{max(bits)}-bit integer images have no known range; send 8- or 16-bit pixels")
    if odd := set(bits) - {1, 2, 4, 8, 16, *((12,) if len(bits) == 1 else ())}:
        raise ImageFormatError(f"{max(odd)}-bit pixels cannot be read here; save the image with 8 or 16 bits")


def _check_pieces(fields: dict[int, Field], sides: dict[int, int], samples: int) -> None:
    """No more strips or tiles than cover the image, and these not far larger than it is: they may share their bytes."""
    width, height = sides[_WIDTH], sides[_HEIGHT]
    tiled = _TILE_WIDTH in sides and _TILE_HEIGHT in sides
    across, down = (sides[_TILE_WIDTH], sides[_TILE_HEIGHT]) if tiled else (width, sides.get(_ROWS, height))
    if not (width and height and across and down):
        raise ImageFormatError("a side of the TIFF is zero")
    columns, rows = math.ceil(width / across), math.ceil(height / down)
    if tiled and columns * across * rows * down > max(4 * width * height, _MIN_TILED):
        raise ImageFormatError(f"the TIFF has tiles of {across}x{down} pixels, far larger than the image")
    if any(fields[tag].number > columns * rows * max(samples, 1) for tag in _OFFSETS if tag in fields):
        raise ImageFormatError("the TIFF has more strips or tiles than cover the image")
