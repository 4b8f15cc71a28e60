"""Every kind of image that people send, through HTTP: what docs/http.md says of it is what happens."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.service.conftest import FakeEngine, check_problem, files

HEIGHT, WIDTH, _ = FakeEngine.contract.shape  # 8 x 6, grey
SIZE = (WIDTH, HEIGHT)
GREEN, LUMA = (10, 200, 30), 124


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(level: int = 90, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.new("L", size, level)


def halves(size: tuple[int, int] = SIZE) -> Image.Image:
    """Black above, white below."""
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[size[1] // 2 :] = 255
    return Image.fromarray(pixels)


def palette(**options: Any) -> bytes:
    image = Image.new("P", SIZE, 1)
    image.putpalette([0, 0, 0, *GREEN])
    return encoded(image, "PNG", **options)


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(grey(size=(HEIGHT, WIDTH)), "JPEG", exif=exif, quality=95)


def frames(kind: str) -> bytes:
    return encoded(grey(90), kind, save_all=True, append_images=[grey(250), grey(10)], lossless=True)


def deep(dtype: type[np.integer[Any]], value: int, kind: str) -> bytes:
    return encoded(Image.fromarray(np.full((HEIGHT, WIDTH), value, dtype)), kind)


# name, bytes, level of the mean grey, resized
KINDS = [
    ("PNG", encoded(grey()), 90, False),
    ("JPEG", encoded(grey(), "JPEG", quality=95), 90, False),
    ("JPEG, progressive", encoded(grey(), "JPEG", quality=95, progressive=True), 90, False),
    ("WebP", encoded(grey().convert("RGB"), "WEBP", lossless=True), 90, False),
    ("BMP", encoded(grey(), "BMP"), 90, False),
    ("GIF", encoded(grey(), "GIF"), 90, False),
    ("TIFF", encoded(grey(), "TIFF"), 90, False),
    ("TIFF, LZW", encoded(grey(), "TIFF", compression="tiff_lzw"), 90, False),
    ("1 bit", encoded(Image.new("1", SIZE, 1)), 255, False),
    ("16 bit", deep(np.uint16, 200 * 256 + 255, "PNG"), 200, False),
    ("16 bit, TIFF", deep(np.uint16, 200 * 256, "TIFF"), 200, False),
    ("RGB", encoded(Image.new("RGB", SIZE, GREEN)), LUMA, False),
    ("CMYK", encoded(Image.new("CMYK", SIZE, (0, 0, 0, 155)), "JPEG", quality=95), 100, False),
    ("CMYK, TIFF", encoded(Image.new("CMYK", SIZE, (0, 0, 0, 155)), "TIFF"), 100, False),
    ("YCbCr", encoded(Image.new("RGB", SIZE, GREEN).convert("YCbCr"), "JPEG", quality=95), LUMA, False),
    ("palette", palette(), LUMA, False),
    ("palette, clear", palette(transparency=1), 0, False),
    ("alpha, half", encoded(Image.new("RGBA", SIZE, (200, 200, 200, 128))), 100, False),
    ("alpha, clear", encoded(Image.new("RGBA", SIZE, (255, 255, 255, 0))), 0, False),
    ("alpha, grey", encoded(Image.new("LA", SIZE, (200, 128))), 100, False),
    ("EXIF, a quarter turn", rotated(6), 90, False),
    ("EXIF, upside down", rotated(3), 90, True),  # its size is the other way round
    ("animated GIF", frames("GIF"), 90, False),
    ("animated WebP", frames("WEBP"), 90, False),
    ("animated PNG", encoded(grey(90), "PNG", save_all=True, append_images=[grey(250)]), 90, False),
    ("TIFF of pages", encoded(grey(90), "TIFF", save_all=True, append_images=[grey(250)]), 90, False),
    ("1x1", encoded(grey(size=(1, 1))), 90, True),
    ("4000x3", encoded(grey(size=(4000, 3))), 90, True),
    ("3x4000", encoded(grey(size=(3, 4000))), 90, True),
    ("larger", encoded(halves((600, 800))), 127.5, True),
    ("4000x4000", encoded(grey(size=(4000, 4000))), 90, True),
]

REFUSED = [
    ("floating point", encoded(Image.new("F", SIZE, 0.5), "TIFF"), 422, "floating-point"),
    ("4001x4000", encoded(grey(size=(4001, 4000))), 413, "4001x4000"),
    ("16385x1", encoded(grey(size=(16_385, 1))), 413, "no side may be over 16384"),
    ("ICO", encoded(grey(size=(16, 16)), "ICO"), 422, "PNG, JPEG, WEBP"),
    ("SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "PNG, JPEG, WEBP"),
    ("PDF", encoded(grey(), "PDF"), 422, "PNG, JPEG, WEBP"),
    ("PPM", encoded(grey(), "PPM"), 422, "PNG, JPEG, WEBP"),
    ("EPS", encoded(grey(), "EPS"), 422, "PNG, JPEG, WEBP"),
]


@pytest.mark.parametrize(("data", "level", "resized"), [row[1:] for row in KINDS], ids=[row[0] for row in KINDS])
def test_a_kind_that_is_taken(client: TestClient, data: bytes, level: float, resized: bool) -> None:
    response = client.post("/v1/scores", files=files(data))
    assert response.status_code == 200, response.text
    (result,) = response.json()["results"]
    assert result["ood_score"] == pytest.approx(level, abs=1.5)
    assert result["resized"] is resized


@pytest.mark.parametrize(("data", "status", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_kind_that_is_refused_says_why(client: TestClient, data: bytes, status: int, words: str) -> None:
    problem = check_problem(client.post("/v1/scores", files=files(data)), status)
    assert words in problem["detail"]
