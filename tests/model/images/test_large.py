"""Photographs of many megapixels: what is reduced, what it costs, and who decides."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddaebm.model.errors import DataError, ImageTooLargeError
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.decode import convert, decode, open_image, upright_size
from ddaebm.model.images.readers import find_contract, read_images

CONTRACT = Contract(32, 24, 3)


def photo(width: int, height: int, kind: str = "JPEG", **options: object) -> bytes:
    small = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_phone_photo_is_read_by_default(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(photo(6000, 4000))
    assert find_contract(tmp_path).shape == (4000, 6000, 3)
    assert read_images(tmp_path, CONTRACT).shape == (1, 32, 24, 3)


def test_the_limit_is_the_caller_s_and_the_error_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(photo(600, 400))
    for call in (
        lambda: read_images(tmp_path, CONTRACT, 239_999),
        lambda: find_contract(tmp_path, None, None, 239_999),
    ):
        with pytest.raises(DataError, match=r"600x400 pixels, over the limit of 239999.*--max-pixels"):
            call()
    assert len(read_images(tmp_path, CONTRACT, 240_000)) == 1


def test_large_jpegs_are_decoded_at_reduced_size_and_look_the_same() -> None:
    data = photo(5000, 4000, quality=95)
    reduced = decode(data, CONTRACT)
    assert reduced.resized
    whole = np.asarray(Image.open(io.BytesIO(data)).resize((24, 32), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(reduced.pixels - whole).mean() < 1
    image = open_image(data)
    convert(image, CONTRACT)
    assert image.size == (625, 500)  # an eighth, the smallest that libjpeg makes


@pytest.mark.parametrize("side", [300, 1500, 3000])
def test_the_reduced_image_is_twice_the_size_of_the_contract_or_more(side: int) -> None:
    image = open_image(photo(5000, 4000))
    convert(image, Contract(side, 24, 3))
    assert min(image.size) >= min(2 * side, 4000)


@pytest.mark.parametrize(("size", "kind"), [((4000, 4000), "JPEG"), ((5000, 4000), "PNG")])
def test_other_images_are_decoded_whole(size: tuple[int, int], kind: str) -> None:
    image = open_image(photo(*size, kind=kind))
    convert(image, CONTRACT)
    assert image.size == size


def test_orientation_and_grey_models_do_not_change_what_is_reduced() -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = photo(5000, 4000, exif=exif)
    assert upright_size(open_image(data)) == (4000, 5000)
    assert decode(data, Contract(32, 24, 1)).pixels.shape == (32, 24, 1)
    turned = np.rot90(decode(photo(5000, 4000), Contract(24, 32, 3)).pixels, -1)
    assert np.abs(decode(data, CONTRACT).pixels.astype(int) - turned).mean() < 2


def test_an_image_that_a_program_has_opened_is_not_reduced_in_its_hands() -> None:
    image = Image.open(io.BytesIO(photo(5000, 4000)))
    convert(image, CONTRACT)
    assert image.size == (5000, 4000)


def test_the_service_s_limit_stays() -> None:
    with pytest.raises(ImageTooLargeError, match="limit of 16000000"):
        decode(photo(5000, 4000), CONTRACT, 16_000_000)


COST = """
import resource, sys
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.decode import decode
data = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode(data, Contract(32, 32, 3))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize(
    ("size", "kind", "mebibytes"),
    [((11_500, 8_600), "JPEG", 100), ((4000, 4000), "PNG", 120)], ids=["100 megapixels", "16 megapixels, transparent"],
)  # fmt: skip
def test_memory(tmp_path: Path, size: tuple[int, int], kind: str, mebibytes: int) -> None:
    image = Image.new("RGBA" if kind == "PNG" else "RGB", size, (200, 30, 60, 100)[: 4 if kind == "PNG" else 3])
    image.save(tmp_path / "large", kind)
    del image
    done = subprocess.run([sys.executable, "-c", COST, tmp_path / "large"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < mebibytes
