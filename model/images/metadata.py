"""Metadata of image files: remove what the pixels do not need, and read the orientation.

Pillow fails on damaged or huge metadata even where the pixels are fine, and some of it takes long to parse.
"""

import re
import struct
import zlib
from collections.abc import Iterator

from PIL import Image
from PIL.TiffImagePlugin import PREFIXES

from ddaebm.model.errors import ImageFormatError
from ddaebm.model.images.bounds import tiff_fields
from ddaebm.model.images.header import ALONE, JPEG, PNG

MAX_PARTS = 50_000  # chunks or segments that are gone through, at about a microsecond each
_MAX_BYTES = 2**20  # of one block of metadata that is kept
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
# Keywords of PNG text that may hold an orientation.
_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
_TRANSPARENCY = {0: range(2, 3), 2: range(6, 7), 3: range(1, 257)}  # valid lengths of tRNS by colour type
_ORIENTATION, _SHORT = 274, 3  # TIFF tag and type
# TIFF tags of the pixels, how they are stored and compressed, and of the orientation.
_NEEDED_TAGS = {256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332,
                338, 339, 347, *range(512, 522), 529, 530, 531, 532}  # fmt: skip
_UNKNOWN_TAG, _BYTE = 65535, 1  # a tag of no meaning, and a type


def strip(data: bytes) -> bytes:
    """A PNG, JPEG or TIFF without metadata that does not affect its pixels or orientation; other files as they are.

    Raises:
        ImageFormatError: The file is in more than `MAX_PARTS` parts.
        struct.error: The directory of a TIFF is truncated.
    """
    if data.startswith(PNG):
        return _join(data, _png_parts(data))
    if data.startswith(JPEG):
        return _join(data, _jpeg_parts(data))
    return _without_tags(data) if data.startswith(tuple(PREFIXES)) else data


def _without_tags(data: bytes) -> bytes:
    """A TIFF in which all but `_NEEDED_TAGS` are replaced by a tag that nobody reads."""
    fields = tiff_fields(data)
    if not fields.keys() - _NEEDED_TAGS:
        return data
    order = "<" if data[:2] == b"II" else ">"
    entry = order + ("HHQQ" if data[2:4] in (b"+\0", b"\0+") else "HHLL")
    start, end = (choose(field.at for field in fields.values()) for choose in (min, max))
    end += struct.calcsize(entry)
    directory = bytearray(data[start:end])
    for tag in fields.keys() - _NEEDED_TAGS:
        struct.pack_into(entry, directory, fields[tag].at - start, _UNKNOWN_TAG, _BYTE, 1, 0)
    view = memoryview(data)
    return b"".join([view[:start], directory, view[end:]])


def _join(data: bytes, parts: Iterator[tuple[int, int, bool]]) -> bytes:
    """The parts (start, end, kept) of `data` that are kept."""
    view, kept, dropped = memoryview(data), [], False
    for number, (start, end, needed) in enumerate(parts):
        if number == MAX_PARTS:
            raise ImageFormatError(f"the file has more than {MAX_PARTS} parts; save it again, for example as PNG")
        if needed:
            kept.append(view[start:end])
        dropped = dropped or not needed
    return b"".join(kept) if dropped else data


def _png_parts(data: bytes) -> Iterator[tuple[int, int, bool]]:
    at = len(PNG)
    yield 0, at, True
    colour = data[25] if len(data) > 25 else -1
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">L4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        ancillary = kind[0] & 0x20
        yield at, end, not ancillary or _is_needed(kind, data[at + 8 : end - 4], data[end - 4 : end], colour)
        at = end
        if kind == b"IEND":
            return  # what follows is no part of the image
    yield at, len(data), True  # truncated, as Pillow will find


def _is_needed(kind: bytes, body: bytes, check: bytes, colour: int) -> bool:
    """Return True if an ancillary chunk of a PNG affects the pixels or the orientation, and is intact."""
    if kind == b"tRNS":
        needed = len(body) in _TRANSPARENCY.get(colour, ())
    elif kind == b"eXIf":
        needed = len(body) <= _MAX_BYTES
    elif kind in (b"tEXt", b"zTXt", b"iTXt"):
        needed = body.startswith(_TEXTS) and len(body) <= _MAX_BYTES and _inflates(kind, body)
    else:
        needed = False
    return needed and zlib.crc32(kind + body) == int.from_bytes(check, "big")


def _inflates(kind: bytes, body: bytes) -> bool:
    """Return True if the text of a chunk is not compressed, or inflates to `_MAX_BYTES` at most."""
    rest = body.partition(b"\0")[2]
    if kind == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].split(b"\0", 2)[-1]
    elif kind == b"zTXt":
        packed = rest[1:]
    else:
        return True
    stream = zlib.decompressobj()
    try:
        return len(stream.decompress(packed, _MAX_BYTES + 1)) <= _MAX_BYTES and stream.eof
    except zlib.error:
        return False


def _jpeg_parts(data: bytes) -> Iterator[tuple[int, int, bool]]:
    """The segments before the first scan, and the rest."""
    at = 2
    yield 0, at, True
    exif = 0  # bytes of it so far; Pillow joins the segments in quadratic time
    while at + 4 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind in ALONE or kind == 0xFF:  # 0xFF is padding
            end = at + (1 if kind == 0xFF else 2)
            yield at, end, kind != 0xFF
        elif kind in (0xD9, 0xDA):  # end of image, start of a scan
            break
        else:
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            if end > len(data) or end < at + 4:
                break
            body = data[at + 4 : end]
            is_exif = kind == 0xE1 and body.startswith(_EXIF)
            exif += len(body) if is_exif else 0
            yield at, end, exif <= _MAX_BYTES if is_exif else _is_needed_in_jpeg(kind, body)
        at = end
    yield at, len(data), True


def _is_needed_in_jpeg(kind: int, body: bytes) -> bool:
    if kind == 0xFE or not 0xE0 <= kind <= 0xEF:  # comments are not, frame headers and tables are
        return kind != 0xFE
    jfif, adobe = kind == 0xE0 and body.startswith(b"JFIF\0"), kind == 0xEE and body.startswith(b"Adobe")  # the colours
    return (jfif and len(body) >= 14) or (adobe and len(body) >= 12) or (kind == 0xE1 and body.startswith(_XMP))


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, from EXIF or XMP; 1 if there is none that can be read."""
    info = image.info
    exif = info.get("exif") or _from_text(info.get("Raw profile type exif", ""))
    found = _in_exif(exif) if isinstance(exif, bytes) else None
    if found is None:
        xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
        text = xmp if isinstance(xmp, bytes) else str(xmp).encode("utf-8", "replace")
        match = re.search(rb'tiff:Orientation(?:="|>)([0-9])', text[:_MAX_BYTES])
        found = int(match[1]) if match else None
    return 1 if found is None else found


def _from_text(text: object) -> bytes:
    """EXIF in the form of ImageMagick: three lines, then hexadecimal digits."""
    digits = "".join(str(text)[: 4 * _MAX_BYTES].split("\n")[3:])
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return b""


def _in_exif(exif: bytes) -> int | None:
    tiff = exif.removeprefix(_EXIF)
    order = "<" if tiff[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(order + "L", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for i in range(count):
            tag, kind, number, value = struct.unpack_from(order + "HHLH", tiff, start + 2 + 12 * i)
            if (tag, kind, number) == (_ORIENTATION, _SHORT, 1):
                return int(value)
    except struct.error:  # truncated or garbage
        return None
    return None
