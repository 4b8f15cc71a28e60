"""Image files, arrays and tensors that are made to be slow, large, or odd. All are made by a few lines each."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from tests.model.images.test_bounds import chunk, tiff

SIDE = 28
CLOTHES = np.tile(np.arange(SIDE, dtype=np.uint8) * 9, (SIDE, 1))


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


HONEST = save(Image.fromarray(CLOTHES), "PNG")
PHOTO = save(Image.fromarray(CLOTHES).resize((300, 300)), "PNG")
SCAN = save(Image.fromarray(CLOTHES).resize((300, 300)), "TIFF")  # goes to a decoder process


def sixteen_megapixels(kind: str) -> bytes:
    """Small files, large images."""
    if kind == "PNG of 16 bits":
        return save(Image.new("I;16", (4000, 4000), 7), "PNG")
    if kind == "BMP of runs":
        body = (b"\xff\x05" * 15 + b"\xaf\x05\0\0") * 4000
        info = struct.pack("<IiiHHIIiiII", 40, 4000, 4000, 1, 8, 1, len(body), 0, 0, 256, 0)
        return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + info + bytes(1024) + body
    name, mode, options = {
        "PNG": ("PNG", "RGBA", {}), "progressive JPEG": ("JPEG", "RGB", {"progressive": True}),
        "WebP": ("WEBP", "RGBA", {"lossless": True, "method": 0}), "GIF": ("GIF", "P", {}),
        "TIFF": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    }[kind]  # fmt: skip
    return save(Image.new(mode, (4000, 4000), (90, 50, 20, 100)[: len(mode)] if len(mode) > 1 else 3), name, **options)


SHAPE = {256: (4, 1, SIDE), 257: (4, 1, SIDE), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1)}


def shared_tiles(width: int, height: int, compression: int = 1) -> bytes:
    """A TIFF whose 1,024 tiles are the same bytes."""
    packed = zlib.compress(bytes(10_000)) if compression == 8 else bytes(16_000)
    tags = {**SHAPE, 259: (3, 1, compression), 322: (4, 1, width), 323: (4, 1, height), 324: (4, 1024, 0),
            325: (4, 1024, 0)}  # fmt: skip
    start = 14 + 12 * len(tags)
    data = bytearray(
        tiff(tags, struct.pack("<L", start + 8192) * 1024 + struct.pack("<L", len(packed)) * 1024 + packed)
    )
    at = data.index(struct.pack("<HHL", 325, 4, 1024)) + 8
    data[at : at + 4] = struct.pack("<L", start + 4096)
    return bytes(data)


def shared_strips() -> bytes:
    tags = {**SHAPE, 256: (4, 1, 16_000), 257: (4, 1, 16_000), 278: (4, 1, 1), 273: (4, 16_000, 0), 279: (4, 16_000, 0)}
    return tiff(tags, struct.pack("<L", 300) * 16_000)


def tag_of(tag: int, kind: int, megabytes: int) -> bytes:
    """A TIFF with one huge tag."""
    return tiff(
        {**SHAPE, 273: (4, 1, 8), 279: (4, 1, 784), tag: (kind, megabytes * 2**20, 0)}, bytes(megabytes * 2**20)
    )


def grey_tiff(bits: int, form: int) -> bytes:
    """A TIFF with pixels of another type."""
    size = SIDE * SIDE * bits // 8
    tags = {**SHAPE, 258: (3, 1, bits), 277: (3, 1, 1), 279: (4, 1, size), 339: (3, 1, form)}
    tags[273] = (4, 1, 14 + 12 * (len(tags) + 1))
    return tiff(tags, bytes(size))


def colour_tiff(bits: int, form: int) -> bytes:
    size = 3 * SIDE * SIDE * bits // 8
    tags = {
        **SHAPE,
        258: (3, 3, 0),
        262: (3, 1, 2),
        277: (3, 1, 3),
        279: (4, 1, size),
        339: (3, 1, form),
        273: (4, 1, 200),
    }
    return tiff(tags, struct.pack("<3H", bits, bits, bits) + bytes(size))


HUGE = zlib.compress(bytes(2 * 2**20))
PNG_METADATA = {
    "huge iCCP": chunk(b"iCCP", b"icc\0\0" + HUGE), "huge zTXt": chunk(b"zTXt", b"Comment\0\0" + HUGE),
    "huge iTXt": chunk(b"iTXt", b"Comment\0\1\0\0\0" + HUGE), "bad sum": chunk(b"tEXt", b"a\0b")[:-1] + b"\0",
    "short pHYs": chunk(b"pHYs", b"\0"), "short gAMA": chunk(b"gAMA", b"\0"), "short cHRM": chunk(b"cHRM", b"\0"),
    "short sRGB": chunk(b"sRGB"), "garbage eXIf": chunk(b"eXIf", b"garbage"),
}  # fmt: skip


def with_metadata(name: str) -> bytes:
    return HONEST[:33] + PNG_METADATA[name] + HONEST[33:]


def npy(array: np.ndarray, pad: int = 0, version: tuple[int, int] = (1, 0), tail: bytes = b"") -> bytes:
    """An .npy with `pad` blanks in its header."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version)
    data, width = buffer.getvalue(), 2 if version == (1, 0) else 4
    end = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    head = data[8 + width : end - 1] + b" " * pad + b"\n"
    return data[:8] + len(head).to_bytes(width, "little") + head + data[end:] + tail


def npy_head(text: str) -> bytes:
    head = text.encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + bytes(784)
