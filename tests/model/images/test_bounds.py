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
    "rationals": (tiff({**TAGS, 532: (5, 65, 0)}, bytes(65 * 8)), "rational"),
    "tags": (tiff(dict.fromkeys(range(1001), (3, 1, 1))), "1000 tags"),
    "tags of a BigTIFF": (b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 10**6) + bytes(20 * 10**6), "1000 tags"),
    "signed bits": (tiff({**TAGS, 258: (6, 2**20, 0)}, bytes(2**20)), "more values"),
    "many bits": (tiff({**TAGS, 258: (3, 17, 8)}, bytes(2**20)), "not a number"),
    "many numbers": (tiff({**TAGS, 320: (3, 500_000, 0)}, bytes(2**20)), "more values"),
    "numbers in many tags": (
        tiff({**TAGS, **{512 + i: (8, 70_000, 0) for i in range(9)}}, bytes(2**20)),
        "more values",
    ),
    "blobs that overlap": (tiff({**TAGS, **{512 + i: (7, 2**20, 0) for i in range(9)}}, bytes(2**20)), "more values"),
    "more strips than rows": (tiff({**TAGS, 273: (4, 9, 0), 278: (3, 1, 1)}, bytes(2**10)), "more strips"),
    "shared tiles": (
        tiff({**TAGS, 322: (3, 1, 16), 323: (4, 1, 10**6), 324: (4, 1024, 0), 325: (4, 1024, 0)}, bytes(2**13)),
        "far larger",
    ),
    "shared small tiles": (
        tiff({**TAGS, 322: (3, 1, 16), 323: (4, 1, 16), 324: (4, 1024, 0), 325: (4, 1024, 0)}, bytes(2**13)),
        "more strips or tiles",
    ),
    "no rows in a strip": (tiff({**TAGS, 278: (3, 1, 0)}), "zero"),
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


def grey(bits: int, form: int, data: bytes, samples: int = 1, white_is_zero: bool = False) -> bytes:
    """An 8x8 TIFF with pixels of another type."""
    tags = {**TAGS, 258: (3, 1, bits), 262: (3, 1, 0 if white_is_zero else 1), 277: (3, 1, samples), 339: (3, 1, form)}
    tags |= {273: (4, 1, 14 + 12 * len(tags)), 279: (4, 1, len(data))}
    return tiff(tags, data)


def test_twelve_packed_bits_keep_their_upper_eight() -> None:
    row = b"\xab\xcf\x12\x34\x56\x78" * 2  # 0xABC, 0xF12, 0x345, 0x678, twice
    pixels = decode(grey(12, 1, row * 8), CONTRACT).pixels[..., 0]
    assert (pixels == [0xAB, 0xF1, 0x34, 0x67] * 2).all()


@pytest.mark.parametrize(("bits", "data"), [(8, b"\x10"), (16, b"\xff\x10")])
def test_white_may_be_zero(bits: int, data: bytes) -> None:
    assert (decode(grey(bits, 1, data * 64, white_is_zero=True), CONTRACT).pixels == 255 - 0x10).all()
    assert (decode(grey(bits, 1, data * 64), CONTRACT).pixels == 0x10).all()


@pytest.mark.parametrize(
    ("bits", "form", "name"),
    [(32, 1, "32-bit integer"), (64, 1, "64-bit integer"), (24, 1, "24-bit integer"), (32, 2, "signed integer"),
     (16, 2, "signed integer"), (8, 2, "signed integer"), (16, 3, "floating-point"), (32, 3, "floating-point"),
     (64, 3, "floating-point"), (32, 5, "complex integer"), (64, 6, "complex"), (10, 1, "10-bit"), (14, 1, "14-bit")],
)  # fmt: skip
def test_pixels_of_unknown_range_are_refused_by_name(bits: int, form: int, name: str) -> None:
    with pytest.raises(ImageFormatError, match=f"{name} .*8.*16"):
        decode(grey(bits, form, bytes(8 * bits)), CONTRACT)


@pytest.mark.parametrize(("bits", "form", "name"), [(32, 3, "floating-point"), (12, 1, "12-bit"), (32, 1, "32-bit")])
def test_so_are_colours(bits: int, form: int, name: str) -> None:
    tags = {**TAGS, 258: (3, 3, 0), 262: (3, 1, 2), 277: (3, 1, 3), 339: (3, 1, form)}
    tags |= {279: (4, 1, 24 * bits)}
    with pytest.raises(ImageFormatError, match=name):
        decode(tiff(tags, struct.pack("<3H", bits, bits, bits) + bytes(24 * bits)), CONTRACT)


def test_integers_of_the_python_api_are_refused_by_name() -> None:
    for mode, name in (("I", "32-bit integer"), ("F", "floating-point")):
        with pytest.raises(ImageFormatError, match=name):
            convert(Image.new(mode, (8, 8)), CONTRACT)
