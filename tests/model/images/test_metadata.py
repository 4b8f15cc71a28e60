"""Damaged, huge or hostile metadata does not fail an image; what the pixels and the orientation need is kept."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from ddaebm.model.errors import ImageFormatError
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.decode import decode, open_image, upright_size
from ddaebm.model.images.metadata import MAX_PARTS, strip
from tests.model.images.test_bounds import TAGS, chunk, tiff

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
CONTRACT = Contract(12, 9, 3)
HUGE = zlib.compress(bytes(2 * 2**20))


def save(kind: str, pixels: np.ndarray = PIXELS, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def read(data: bytes) -> np.ndarray:
    return decode(data, CONTRACT).pixels


PLAIN = save("PNG")


def with_chunk(extra: bytes, data: bytes = PLAIN) -> bytes:
    """The PNG with a chunk after its header."""
    return data[:33] + extra + data[33:]


def damaged(kind: bytes, body: bytes = b"x") -> bytes:
    whole = chunk(kind, body)
    return whole[:-1] + bytes([whole[-1] ^ 1])


CHUNKS = {
    "huge iCCP": chunk(b"iCCP", b"icc\0\0" + HUGE),
    "huge zTXt": chunk(b"zTXt", b"Comment\0\0" + HUGE),
    "huge iTXt": chunk(b"iTXt", b"Comment\0\1\0\0\0" + HUGE),
    "huge raw profile": chunk(b"zTXt", b"Raw profile type exif\0\0" + HUGE),
    "huge xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + HUGE),
    "many huge texts": chunk(b"zTXt", b"Comment\0\0" + HUGE) * 100,
    "truncated zTXt": chunk(b"zTXt", b"Raw profile type exif\0\0" + HUGE[:50]),
    "zTXt of nothing": chunk(b"zTXt", b""),
    "iTXt of nothing": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1"),
    "zTXt of another method": chunk(b"zTXt", b"Comment\0\7x"),
    "raw profile of no digits": chunk(b"tEXt", b"Raw profile type exif\0\n\n\nxyz"),
    "garbage eXIf": chunk(b"eXIf", b"garbage" * 9),
    "eXIf of nothing": chunk(b"eXIf"),
    "large eXIf": chunk(b"eXIf", tiff({274: (5, 2**15, 0)}, b"\1\0\0\0" * 2**16)),
    "eXIf that points outside": chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
    **{f"short {kind}": chunk(kind.encode(), b"\1")
       for kind in ("pHYs", "gAMA", "cHRM", "tIME", "bKGD", "sBIT", "hIST", "iCCP", "sPLT", "acTL", "oFFs")},
    "short sRGB": chunk(b"sRGB"), "short tRNS": chunk(b"tRNS", b"\0"), "tRNS of nothing": chunk(b"tRNS"),
    **{f"bad sum of {kind}": damaged(kind.encode(), b"\0" * 6)
       for kind in ("pHYs", "gAMA", "tEXt", "zTXt", "iCCP", "eXIf", "tRNS", "prVt", "acTL")},
    "animation of garbage": chunk(b"acTL", b"\xff" * 8) + chunk(b"fcTL", b"\xff" * 26),
}  # fmt: skip


@pytest.mark.parametrize("name", CHUNKS)
def test_a_png_is_read_whatever_its_metadata(name: str) -> None:
    np.testing.assert_array_equal(read(with_chunk(CHUNKS[name])), PIXELS)


@pytest.mark.parametrize("cut", [20, 40, -200, -30])
def test_a_png_that_lacks_pixels_is_refused(cut: int) -> None:
    with pytest.raises(ImageFormatError):
        read(PLAIN[:cut])


def test_critical_chunks_must_be_intact() -> None:
    at = PLAIN.index(b"IDAT") + 10
    with pytest.raises(ImageFormatError):
        read(PLAIN[:at] + bytes([PLAIN[at] ^ 255]) + PLAIN[at + 1 :])
    np.testing.assert_array_equal(read(PLAIN + b"what follows the end"), PIXELS)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


JPEG = save("JPEG", quality=95)
SEGMENTS = {
    "garbage exif": segment(0xE1, b"Exif\0\0" + b"garbage" * 9),
    "exif of nothing": segment(0xE1, b"Exif\0\0"),
    "many exif": segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 200,
    "garbage profile": segment(0xE2, b"ICC_PROFILE\0garbage"),
    "profile of nothing": segment(0xE2, b"ICC_PROFILE\0"),
    "garbage pictures": segment(0xE2, b"MPF\0garbage"),
    "pictures": segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff" + bytes(100)),
    "resources": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 2001),
    "garbage resources": segment(0xED, b"Photoshop 3.0\x008BIM\xff"),
    "short JFIF": segment(0xE0, b"JFIF\0"), "short Adobe": segment(0xEE, b"Adobe"),
    "comment": segment(0xFE, b"x" * 60_000), "unknown": segment(0xEB, b"x" * 60_000),
    "xmp of garbage": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"\xff" * 1000),
}  # fmt: skip


@pytest.mark.parametrize("name", SEGMENTS)
def test_a_jpeg_is_read_whatever_its_metadata(name: str) -> None:
    np.testing.assert_array_equal(read(JPEG[:2] + SEGMENTS[name] + JPEG[2:]), read(JPEG))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2, "restart_marker_rows": 1}], ids=str)
def test_a_jpeg_without_its_end_is_read_and_one_without_pixels_is_not(options: dict[str, object]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    whole = save("JPEG", pixels, **options)
    contract = Contract(40, 30, 3)
    for missing in (1, 2):
        np.testing.assert_array_equal(decode(whole[:-missing], contract).pixels, decode(whole, contract).pixels)
    start = whole.index(b"\xff\xda") + 20
    for cut in range(start, len(whole) - 8, max(1, len(whole) // 40)):
        if not options or b"\xff" not in whole[cut - 1 : cut]:
            with pytest.raises(ImageFormatError):
                decode(whole[:cut], contract)


@pytest.mark.parametrize("tag", [254, 270, 282, 296, 305, 330, 700, 33723, 34377, 34665, 34675, 34853, 37724, 65000])
@pytest.mark.parametrize("kind", [1, 2, 3, 5, 6, 7, 8, 12, 13, 99])
def test_a_tiff_is_read_whatever_its_other_tags(tag: int, kind: int) -> None:
    for number, value in ((0, 0), (1, 1), (1, 0xFFFF), (5, 0)):
        tags = {**TAGS, tag: (kind, number, value)}
        tags[273] = (4, 1, 14 + 12 * len(tags))
        assert (decode(tiff(tags, b"\x07" * 64), Contract(8, 8, 1)).pixels == 7).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_garbage_exif_turns_nothing(kind: str) -> None:
    assert upright_size(open_image(save(kind, exif=b"Exif\0\0garbage"))) == (9, 12)
    np.testing.assert_array_equal(read(save(kind, exif=b"Exif\0\0garbage", quality=95)), read(save(kind, quality=95)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_orientation_behind_a_large_block_is_found(kind: str) -> None:
    exif = Image.Exif()
    exif[37500] = b"x" * 30_000
    exif[274] = 6
    assert upright_size(open_image(save(kind, exif=exif))) == (12, 9)


def test_orientations_in_text_are_those_that_pillow_finds() -> None:
    xmp = '<x:xmpmeta tiff:Orientation="6"/>'
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp, zip=True)
    exif = Image.Exif()
    exif[274] = 8
    digits = exif.tobytes().hex()
    raw = PngImagePlugin.PngInfo()
    raw.add_text("Raw profile type exif", f"\nexif\n{len(digits) // 2}\n{digits}\n", zip=True)
    files = [save("PNG", pnginfo=info), save("PNG", pnginfo=raw), save("JPEG", xmp=xmp.encode()),
             save("WEBP", xmp=xmp.encode())]  # fmt: skip
    for data in files:
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert expected.size == (12, 9)
        np.testing.assert_array_equal(decode(data, Contract(9, 12, 3)).pixels, np.asarray(expected))


def test_files_without_metadata_are_not_copied() -> None:
    for data in (PLAIN, b"GIF89a", b"words"):
        assert strip(data) is data


def test_time_is_linear_in_the_file() -> None:
    began = time.process_time()
    for data in (JPEG[:2] + segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 900 + JPEG[2:],
                 with_chunk(chunk(b"tEXt", b"Raw profile type exif\0" + b"x" * 10**6) * 50),
                 with_chunk(chunk(b"zTXt", b"Raw profile type exif\0\0" + HUGE) * 1000)):  # fmt: skip
        read(data)
    with pytest.raises(ImageFormatError, match="parts"):
        read(with_chunk(chunk(b"prVt") * MAX_PARTS))
    assert time.process_time() - began < 8
