"""The size that an image file states in its first bytes, read without a decoder: linear, and allocates nothing."""

import struct

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
SIGNATURES = (PNG, JPEG, b"GIF8", b"BM", b"RIFF", b"II", b"MM")  # every image of `decode.FORMATS` begins with one
_MAX_SEGMENTS = 1000  # of a JPEG before its frame header
_NO_FRAMES = {0xC4, 0xC8, 0xCC}  # the markers among 0xC0..0xCF that are not frame headers
ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment
_MAX_TAGS = 1000  # of a TIFF
_WIDTH, _HEIGHT = 256, 257  # TIFF tags


def stated_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) before any EXIF rotation, or None where the header does not tell.

    It is what the file claims: the decoder may find another size, or no image at all.
    """
    try:
        return _size(data)
    except (struct.error, OverflowError):  # it points beyond the file; a BigTIFF can name places over 2^63
        return None


def _size(data: bytes) -> tuple[int, int] | None:
    if data.startswith(PNG) and data[12:16] == b"IHDR":
        width, height = struct.unpack_from(">2L", data, 16)
    elif data.startswith(JPEG):
        return _jpeg_size(data)
    elif data[:6] in (b"GIF87a", b"GIF89a"):
        width, height = struct.unpack_from("<2H", data, 6)
    elif data[:2] == b"BM":
        old = struct.unpack_from("<L", data, 14) == (12,)
        width, height = struct.unpack_from("<2H" if old else "<2l", data, 18)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp_size(data)
    elif data[:2] in (b"II", b"MM"):
        return _tiff_size(data)
    else:
        return None
    return abs(width), abs(height)  # a BMP from top to bottom has a negative height


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2
    for _ in range(_MAX_SEGMENTS):
        marker, kind = struct.unpack_from("BB", data, at)
        if marker != 0xFF:
            return None
        if kind == 0xFF:  # padding
            at += 1
        elif kind in ALONE:
            at += 2
        elif 0xC0 <= kind <= 0xCF and kind not in _NO_FRAMES:
            height, width = struct.unpack_from(">2H", data, at + 5)
            return width, height
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        low, mid, high, low2, mid2, high2 = struct.unpack_from("6B", data, 24)
        return 1 + (low | mid << 8 | high << 16), 1 + (low2 | mid2 << 8 | high2 << 16)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<L", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<2H", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _tiff_size(data: bytes) -> tuple[int, int] | None:
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2) == (43,)
    (start,) = struct.unpack_from(order + ("Q" if big else "L"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    start, length, value = (start + 8, 20, 12) if big else (start + 2, 12, 8)
    found = {}
    for i in range(min(count, _MAX_TAGS)):
        tag, kind = struct.unpack_from(order + "2H", data, start + i * length)
        if tag in (_WIDTH, _HEIGHT):
            found[tag] = struct.unpack_from(order + ("H" if kind == 3 else "L"), data, start + i * length + value)[0]
    return (found[_WIDTH], found[_HEIGHT]) if len(found) == 2 else None
