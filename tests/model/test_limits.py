"""Every limit on files and models: what is just within it is taken, one more is refused."""

import dataclasses
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ddaebm.model.bulk import MAX_GRID, sample_to
from ddaebm.model.config import ModelConfig
from ddaebm.model.errors import ConfigError, DataError, ImageFormatError, ImageTooLargeError
from ddaebm.model.images import formats
from ddaebm.model.images.bounds import MAX_STRIPS, check_tiff, tiff_fields
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.decode import check_size, decode, open_image
from ddaebm.model.images.formats import idx_entries, read_whole
from tests.model.images.test_bounds import TAGS, tiff


@pytest.mark.parametrize(
    ("width", "height", "refusal"),
    [(16_384, 1, None), (16_385, 1, "no side may be over 16384"), (1, 16_385, "no side may be over 16384"),
     (10_000, 10_000, None), (10_001, 10_000, "over the limit of 100000000")],
)  # fmt: skip
def test_an_image_has_100_megapixels_and_16384_a_side_at_most(width: int, height: int, refusal: str | None) -> None:
    if refusal is None:
        check_size(width, height, open_image.__defaults__[0])
    else:
        with pytest.raises(ImageTooLargeError, match=refusal):
            check_size(width, height, open_image.__defaults__[0])


@pytest.mark.parametrize(("scans", "taken"), [(100, True), (101, False)])
def test_a_jpeg_has_a_hundred_scans_at_most(scans: int, taken: bool) -> None:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 200).save(buffer, "JPEG")
    data = buffer.getvalue()
    assert data.count(b"\xff\xda") == 1
    data += b"\xff\xda" * (scans - 1)  # after its end: read by nobody, but counted
    if taken:
        assert (decode(data, Contract(8, 8, 1)).pixels == 200).all()
    else:
        with pytest.raises(ImageFormatError, match="more than 100 scans"):
            open_image(data)


STRIPS = {**TAGS, 257: (4, 1, 16_384), 278: (3, 1, 1)}


@pytest.mark.parametrize(
    ("tags", "refusal"),
    [
        ({**STRIPS, 273: (4, MAX_STRIPS, 0)}, None),
        ({**STRIPS, 273: (4, MAX_STRIPS + 1, 0)}, "more than 16384 strips"),
        ({**TAGS, 532: (5, 64, 0)}, None),
        ({**TAGS, 532: (5, 65, 0)}, "over 64 rational numbers"),
        ({**TAGS, 320: (3, 500_000 - len(TAGS), 0)}, None),
        ({**TAGS, 320: (3, 500_001 - len(TAGS), 0)}, "more values"),
    ],
)
def test_the_tags_of_a_tiff_have_limits(tags: dict[int, tuple[int, int, int]], refusal: str | None) -> None:
    data = tiff(tags, bytes(2**20))
    if refusal is None:
        check_tiff(data)
    else:
        with pytest.raises(ImageFormatError, match=refusal):
            check_tiff(data)


def test_a_tiff_has_a_thousand_tags_at_most() -> None:
    assert len(tiff_fields(tiff(dict.fromkeys(range(1000), (3, 1, 1))))) == 1000
    with pytest.raises(ImageFormatError, match="over 1000 tags"):
        tiff_fields(tiff(dict.fromkeys(range(1001), (3, 1, 1))))


def test_a_file_has_256_mebibytes_at_most(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert formats.MAX_FILE_BYTES == 256 * 2**20
    monkeypatch.setattr(formats, "MAX_FILE_BYTES", 100)
    assert len(read_whole(io.BytesIO(bytes(100)))) == 100
    with pytest.raises(ImageTooLargeError):
        read_whole(io.BytesIO(bytes(101)))
    for width, taken in ((10, True), (11, False)):
        (tmp_path / "images.idx").write_bytes(struct.pack(">4I", 0x803, 1, 10, width) + bytes(10 * width))
        if taken:
            assert len(list(idx_entries(tmp_path / "images.idx"))) == 1
        else:
            with pytest.raises(DataError, match=r"\(10, 11, 1\)"):
                list(idx_entries(tmp_path / "images.idx"))


class Black:
    """An engine whose images are one black pixel."""

    contract, workers, digest = Contract(1, 1, 1), 1, "0f" * 32

    def sample(self, seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.zeros((len(seeds), 1, 1, 1), np.uint8)


def test_a_grid_holds_4096_images(tmp_path: Path) -> None:
    sample_to(Black(), tmp_path / "grid.png", 0, 4096)  # type: ignore[arg-type]
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (64 * 3 - 2,) * 2
    with pytest.raises(ConfigError, match=f"at most {MAX_GRID}"):
        sample_to(Black(), tmp_path / "more.png", 0, 4097)  # type: ignore[arg-type]
    assert not (tmp_path / "more.png").exists()


IMAGE = ModelConfig(data_shape=(3, 32, 32), norm_groups=1)


@pytest.mark.parametrize("name", ["num_steps", "latent_dim", "blocks_per_level", "middle_blocks", "mapping_depth"])
def test_sizes_of_a_model_are_1_to_4096(name: str) -> None:
    for value in (1, 4096):
        assert getattr(dataclasses.replace(IMAGE, **{name: value}), name) == value
    for value in (0, 4097):
        with pytest.raises(ConfigError, match=f"{name} must lie between 1 and 4096, not {value}"):
            dataclasses.replace(IMAGE, **{name: value})


def test_widths_of_a_model_are_1_to_4096() -> None:
    for width in (1, 4096):
        assert dataclasses.replace(IMAGE, widths=(width,)).widths == (width,)
    for width in (0, 4097):
        with pytest.raises(ConfigError, match="each between 1 and 4096"):
            dataclasses.replace(IMAGE, widths=(width,))
