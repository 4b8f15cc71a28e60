"""The size that a header states is the one that the decoder finds, and damage makes it unknown at worst."""

import io
import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddaebm.model.images.header import SIGNATURES, stated_size
from tests.stress.bodies import IMAGES


def save(kind: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (300, 20)).save(buffer, kind, **options)
    return buffer.getvalue()


FILES = {
    "png": save("PNG"), "jpeg": save("JPEG"), "progressive": save("JPEG", progressive=True),
    "jpeg with metadata": save("JPEG", icc_profile=b"x" * 200_000, comment=b"y" * 60_000),
    "gif": save("GIF", "P"), "bmp": save("BMP"), "webp": save("WEBP"), "lossless": save("WEBP", lossless=True),
    "webp with alpha": save("WEBP", "RGBA"), "webp with exif": save("WEBP", exif=b"Exif\0\0x"),
    "tiff": save("TIFF"), "big tiff": save("TIFF", big_tiff=True), "packed": save("TIFF", compression="tiff_lzw"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_the_stated_size_is_that_of_the_image(name: str) -> None:
    assert stated_size(FILES[name]) == (300, 20)
    assert FILES[name].startswith(SIGNATURES)


def test_a_bitmap_from_top_to_bottom_has_a_negative_height() -> None:
    data = bytearray(FILES["bmp"])
    data[22:26] = (-20).to_bytes(4, "little", signed=True)
    assert stated_size(bytes(data)) == (300, 20)


def test_pillow_agrees_on_every_image_of_the_fault_tests() -> None:
    assert [stated_size(data) for data in IMAGES] == [Image.open(io.BytesIO(data)).size for data in IMAGES]


def test_a_truncated_header_states_nothing() -> None:
    for data, length in itertools.product(FILES.values(), (0, 1, 2, 5, 9)):
        assert stated_size(data[:length]) is None
    assert stated_size(b"words") is None


def test_a_bigtiff_that_points_beyond_any_memory_states_nothing() -> None:
    assert stated_size(b"II+\0\x08\0\0\0" + b"\xff" * 8 + bytes(100)) is None


@given(st.sampled_from(sorted(FILES)), st.lists(st.tuples(st.integers(0, 200), st.binary(max_size=6))))
def test_damage_never_raises(name: str, damages: list[tuple[int, bytes]]) -> None:
    data = FILES[name]
    for at, patch in damages:
        data = data[:at] + patch + data[at + len(patch) :]
    size = stated_size(data)
    assert size is None or min(size) >= 0


def test_the_time_does_not_grow_with_the_file() -> None:
    segments = b"\xff\xd8" + b"\xff\xe1\x00\x02" * 10_000_000
    began = time.process_time()
    assert stated_size(segments) is None
    assert time.process_time() - began < 0.1
    tags = b"II*\0\x08\0\0\0\xff\xff" + np.zeros(12 * 65_535, np.uint8).tobytes()
    assert stated_size(tags) is None
    assert time.process_time() - began < 0.2
