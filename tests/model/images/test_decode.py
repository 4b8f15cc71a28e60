"""Decoding of every image mode and of malformed files, and encoding."""

import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from ddaebm.model.errors import ConfigError, ImageError, ImageFormatError, ImageTooLargeError
from ddaebm.model.images.arrays import to_unit
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.decode import decode, open_image
from ddaebm.model.images.encode import encode_png, make_grid

GREY, COLOUR = Contract(4, 4, 1), Contract(4, 4, 3)


def encoded(image: Image.Image, format_name: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def flat(mode: str, value: Any) -> Image.Image:
    return Image.new(mode, (4, 4), value)


def palette(colour: tuple[int, int, int]) -> Image.Image:
    image = flat("P", 1)
    image.putpalette([255, 255, 255, *colour])
    return image


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"\0" * 100)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


GREEN = (10, 200, 30)  # luma 124
MODES = [
    ("L", encoded(flat("L", 200)), 200, (200, 200, 200)),
    ("1", encoded(flat("1", 1)), 255, (255, 255, 255)),
    ("LA opaque", encoded(flat("LA", (200, 255))), 200, (200, 200, 200)),
    ("LA half", encoded(flat("LA", (200, 128))), 100, (100, 100, 100)),
    ("LA clear", encoded(flat("LA", (200, 0))), 0, (0, 0, 0)),
    ("P", encoded(palette(GREEN)), 124, GREEN),
    ("P clear", encoded(palette(GREEN), transparency=1), 0, (0, 0, 0)),
    ("P other clear", encoded(palette(GREEN), transparency=0), 124, GREEN),
    ("RGB", encoded(flat("RGB", GREEN)), 124, GREEN),
    ("RGB clear", encoded(flat("RGB", GREEN), transparency=GREEN), 0, (0, 0, 0)),
    ("RGBA half", encoded(flat("RGBA", (*GREEN, 51))), 25, (2, 40, 6)),
    ("CMYK", encoded(flat("CMYK", (0, 0, 0, 55)), "TIFF"), 200, (200, 200, 200)),
    ("I;16", encoded(flat("I;16", 0xC8FF)), 200, (200, 200, 200)),
]


@pytest.mark.parametrize(("data", "grey", "colour"), [row[1:] for row in MODES], ids=[row[0] for row in MODES])
def test_every_mode_has_a_meaning(data: bytes, grey: int, colour: tuple[int, int, int]) -> None:
    for contract, expected in ((GREY, np.full(1, grey)), (COLOUR, np.array(colour))):
        decoded = decode(data, contract)
        assert decoded.pixels.dtype == np.uint8
        np.testing.assert_array_equal(decoded.pixels, np.broadcast_to(expected, contract.shape))
        assert not decoded.resized


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(ImageFormatError, match="floating-point"):
        decode(encoded(flat("F", 0.5), "TIFF"), GREY)


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_every_named_format_is_read(format_name: str) -> None:
    decoded = decode(encoded(flat("L", 255), format_name), GREY)
    assert abs(decoded.pixels.astype(int) - 255).max() <= 2


def pixels(height: int, width: int, channels: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (6, -1), (3, 2), (8, 1)])
def test_exif_rotation_is_applied_before_sizes_are_compared(orientation: int, turns: int) -> None:
    upright, exif = pixels(2, 3, 3), Image.Exif()
    exif[0x0112] = orientation
    expected = np.rot90(upright, turns)
    decoded = decode(encoded(Image.fromarray(upright), exif=exif), Contract(*expected.shape))
    np.testing.assert_array_equal(decoded.pixels, expected)
    assert not decoded.resized


def test_an_animation_is_its_first_frame() -> None:
    frames = [flat("RGB", (255, 0, 0)), flat("RGB", (0, 0, 255))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(data, COLOUR).pixels[0, 0], (255, 0, 0))


WHOLE = encode_png(pixels(64, 64, 3))


@pytest.mark.parametrize(
    "data",
    [b"", b"hello, this is text\n" * 50, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n",
     WHOLE[:20], WHOLE[: len(WHOLE) // 2], WHOLE[:100] + b"\0" * 50 + WHOLE[150:]],
    ids=["empty", "text", "svg", "postscript", "header cut", "half", "zeroed"],
)  # fmt: skip
def test_what_is_not_a_whole_image_is_a_format_error(data: bytes) -> None:
    with pytest.raises(ImageFormatError):
        decode(data, COLOUR)


@pytest.mark.parametrize("size", [(50_000, 50_000), (4001, 4000), (2**31 - 1, 1)])
def test_too_large_a_claim_is_refused_from_the_header_alone(size: tuple[int, int]) -> None:
    started = time.perf_counter()
    with pytest.raises(ImageTooLargeError, match=f"{size[0]}x{size[1]}|{size[0] * size[1]} pixels.*; send"):
        decode(png_claiming(*size), COLOUR, 16_000_000)
    assert time.perf_counter() - started < 0.5


def test_the_budget_is_inclusive_and_the_caller_s() -> None:
    data = encode_png(pixels(4, 5, 1))
    assert open_image(data, max_pixels=20).size == (5, 4)
    with pytest.raises(ImageTooLargeError, match="limit of 19"):
        open_image(data, max_pixels=19)


def test_another_size_is_resized_and_says_so() -> None:
    decoded = decode(encode_png(np.repeat(pixels(1, 1, 3), 64).reshape(3, 64).T.reshape(8, 8, 3)), COLOUR)
    assert decoded.resized
    np.testing.assert_array_equal(decoded.pixels, np.broadcast_to(pixels(1, 1, 3), (4, 4, 3)))


def test_the_contract_names_the_filter() -> None:
    data = encode_png(pixels(16, 16, 1))
    results = {decode(data, Contract(4, 4, 1, name)).pixels.tobytes() for name in ("nearest", "bilinear", "lanczos")}
    assert len(results) == 3


@pytest.mark.parametrize(("change", "message"), [((2, "bicubic"), "channels"), ((3, "best"), "resize_filter")])
def test_a_contract_without_meaning_is_refused(change: tuple[int, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Contract(4, 4, *change)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(channels: int) -> None:
    image = pixels(5, 7, channels)
    np.testing.assert_array_equal(decode(encode_png(image), Contract(5, 7, channels)).pixels, image)


@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_decode_or_raise_an_image_error(place: int, junk: bytes) -> None:
    data = WHOLE[:place] + junk + WHOLE[place + len(junk) :]
    try:
        shape = decode(data, COLOUR).pixels.shape
    except ImageError:
        return
    assert shape == COLOUR.shape


@pytest.mark.parametrize(("count", "columns", "shape"), [(5, None, (6, 10)), (5, 2, (10, 6)), (1, 4, (2, 14))])
def test_grid_layout(count: int, columns: int | None, shape: tuple[int, int]) -> None:
    images = np.arange(1, count + 1, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    grid = make_grid(images, columns)
    across = columns or 3
    assert grid.shape == (*shape, 1)
    for i in range(count):
        top, left = 4 * (i // across), 4 * (i % across)
        assert (grid[top : top + 2, left : left + 2] == i + 1).all()
    assert (grid[2:4] == 255).all()  # a gap between rows, if there are two
    assert (grid[:2, 2:4] == 255).all()
    places = across * -(-count // across)
    assert (grid == 0).sum() == 4 * (places - count)


def test_unit_range() -> None:
    np.testing.assert_array_equal(to_unit(np.array([0.0, 127.5, 255.0])), [-1, 0, 1])


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
def test_a_very_long_image_is_refused_before_it_is_resized(size: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, "PNG")
    with pytest.raises(ImageTooLargeError, match="no side may be over"):
        open_image(buffer.getvalue())


def tiled_tiff(side: int) -> bytes:
    """A 1x1 grey TIFF with square tiles of `side`, built by hand because Pillow does not write tiles."""
    tags = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: 1}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)


def test_a_tiff_with_tiles_larger_than_the_budget_is_refused() -> None:
    assert open_image(tiled_tiff(1_024)).size == (1, 1)
    with pytest.raises(ImageFormatError, match="tiles of 16384x16384"):
        open_image(tiled_tiff(16_384))
