"""Files crafted to be slow are refused quickly."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from ddaebm.model.errors import ImageFormatError
from ddaebm.model.images.bounds import MAX_READS, MAX_STRIPS, CountedReads
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.decode import convert, decode, open_image, upright_size

CONTRACT = Contract(8, 8, 1)
TAGS = {256: (4, 1, 8), 257: (4, 1, 8), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 8), 279: (4, 1, 64)}


def tiff(tags: dict[int, tuple[int, int, int]], tail: bytes = b"", order: str = "<", start: int = 8) -> bytes:
    """Tag -> (type, count, value); a count that needs more than 4 bytes finds `tail`."""
    offset = start + 6 + 12 * len(tags)
    magic = (b"II" if order == "<" else b"MM") + struct.pack(order + "HL", 42, start)
    entries = []
    for tag, (kind, count, value) in sorted(tags.items()):
        short = value << 16 if order == ">" and kind == 3 else value  # values fill the first bytes of the four
        entries.append((tag, kind, count, offset if count > 1 else short))
    directory = b"".join(struct.pack(order + "HHLL", *entry) for entry in entries)
    return magic.ljust(start, b"\0") + struct.pack(order + "H", len(tags)) + directory + bytes(4) + tail


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", zlib.compress(bytes(72))) + chunk(b"IEND")


def bmp_rle(runs: bytes) -> bytes:
    palette = bytes(1024)
    info = struct.pack("<IiiHHIIiiII", 40, 4000, 4000, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(runs), 0, 0, 1078) + info + palette + runs


MANY = MAX_READS + 1
GIF = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0xF0, 0, 0) + bytes(6)
HOSTILE = {
    "strips": (tiff({**TAGS, 273: (4, MAX_STRIPS + 1, 0)}, bytes(4 * MAX_STRIPS + 4)), "strips"),
    "strips as bytes": (tiff({**TAGS, 273: (1, 2**20, 0), 279: (1, 2**20, 0)}, b"\x08" * 2**20), "strips"),
    "tiles": (tiff({**TAGS, 324: (16, 2**20, 0)}, bytes(2**23), ">"), "tiles"),
    "rationals": (tiff({**TAGS, 282: (5, 65, 0)}, bytes(65 * 8)), "rational"),
    "tags": (tiff(dict.fromkeys(range(1001), (3, 1, 1))), "1000 tags"),
    "tags of a BigTIFF": (b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 10**6) + bytes(20 * 10**6), "1000 tags"),
    "exif": (png(chunk(b"eXIf", tiff({274: (5, 2**15, 0)}, b"\1\0\0\0" * 2**16))), "EXIF"),
    "exif segments": (b"\xff\xd8" + b"\xff\xe1\0\x0aExif\0\0xx" * 17, "EXIF"),
    "resources": (b"\xff\xd8\xff\xed\x80\x00Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 2001, "Photoshop"),
    "runs": (bmp_rle(b"\1\5" * MANY), "parts"),
    "empty runs": (bmp_rle(b"\0\2\0\0" * MANY), "parts"),
    "chunks": (png(chunk(b"prVt") * MANY), "parts"),
    "comments": (GIF + b"!\xfe\1x\0" * MANY, "parts"),
    "markers": (b"\xff\xd8" + b"\xff\xfe\0\2" * MANY, "parts"),
    "fill": (b"\xff\xd8" + b"\xff" * 2 * MANY, "parts"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_of_too_many_parts_is_refused(name: str) -> None:
    data, words = HOSTILE[name]
    with pytest.raises(ImageFormatError, match=words):
        decode(data, CONTRACT)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("start", [8, 100])
def test_a_plain_tiff_is_read(order: str, start: int) -> None:
    data = tiff(TAGS, b"\x07" * 64, order, start)
    tags = {**TAGS, 273: (4, 1, len(data) - 64)}
    assert (decode(tiff(tags, b"\x07" * 64, order, start), CONTRACT).pixels == 7).all()


@pytest.mark.parametrize(
    "options", [{}, {"tiffinfo": {278: 1}}, {"compression": "tiff_lzw"}, {"big_tiff": True}], ids=str
)
def test_a_tiff_of_pillow_is_read(options: dict[str, object]) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(300, 20), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF", **options)
    assert (decode(buffer.getvalue(), Contract(300, 20, 1)).pixels[..., 0] == pixels).all()


@pytest.mark.parametrize("cut", range(1, 90, 7))
def test_a_tiff_that_is_cut_off_is_no_image(cut: int) -> None:
    with pytest.raises(ImageFormatError):
        decode(tiff(TAGS)[:cut], CONTRACT)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_an_image_is_turned_as_pillow_turns_it(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)).save(buffer, form, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(buffer))
    image = open_image(buffer.getvalue())
    assert upright_size(image) == expected.size
    pixels = convert(image, Contract(expected.height, expected.width, 3)).pixels
    assert (pixels == np.asarray(expected.convert("RGB"))).all()


def test_reads_are_counted() -> None:
    handle = CountedReads(b"ab")
    handle.left = 2
    assert [handle.read(1), handle.read()] == [b"a", b"b"]
    with pytest.raises(ImageFormatError, match="parts"):
        handle.read()
