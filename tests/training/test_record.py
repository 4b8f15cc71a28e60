"""The record of a run's images: a change of the data after the run began is refused by name, or left out."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from ddaebm.model.errors import CheckpointError, DataError
from ddaebm.model.images.encode import encode_png
from ddaebm.training.config import TrainConfig
from ddaebm.training.data import PARTS, Splits
from ddaebm.training.recipes import make_config
from ddaebm.training.record import RECORD, new_parts, recorded_parts, write_record

IMAGES = np.random.default_rng(0).integers(256, size=(70, 16, 16, 1), dtype=np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, pixels in enumerate(IMAGES):
        (folder / f"{i:02d}.png").write_bytes(encode_png(pixels))
    return folder


@pytest.fixture
def config(photos: Path) -> TrainConfig:
    return make_config("debug").override({"data": str(photos)})


@pytest.fixture
def run(config: TrainConfig, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    write_record(folder, new_parts(config)[1])
    return folder


def names_in(parts: Splits) -> dict[str, list[int]]:
    """Places in IMAGES of the images of each part."""
    place = {image.tobytes(): i for i, image in enumerate(IMAGES)}
    return {part: [place[image.tobytes()] for image in getattr(parts, part)] for part in PARTS}


def test_unchanged_data_is_split_as_before(config: TrainConfig, run: Path) -> None:
    assert names_in(recorded_parts(run, config)) == names_in(new_parts(config)[0])


def test_data_that_has_moved_is_the_same(config: TrainConfig, run: Path, photos: Path) -> None:
    moved = photos.rename(photos.with_name("elsewhere"))
    assert names_in(recorded_parts(run, config, str(moved)))["calibration"]


def test_an_added_image_is_named_and_the_recorded_parts_can_be_kept(
    config: TrainConfig, run: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = names_in(recorded_parts(run, config))
    shutil.copy(photos / "00.png", photos / "00 copy.png")  # pixels that are known, in another number and order
    (photos / "more").mkdir()
    (photos / "more" / "new.png").write_bytes(encode_png(255 - IMAGES[0]))
    with pytest.raises(
        DataError, match=r"2 added \(00 copy.png, more/new.png\). [1-9] of 7 calib.*--keep-parts"
    ) as refused:
        recorded_parts(run, config)
    assert "deleted" not in str(refused.value)
    with caplog.at_level(logging.WARNING):
        assert names_in(recorded_parts(run, config, keep_parts=True)) == before
    assert "has 72 images, of which 70 were there" in caplog.text


@pytest.mark.parametrize("keep_parts", [False, True])
@pytest.mark.parametrize("how", ["deleted", "edited"])
def test_an_image_that_is_gone_is_named_and_cannot_be_left_out(
    config: TrainConfig, run: Path, photos: Path, how: str, keep_parts: bool
) -> None:
    if how == "deleted":
        (photos / "07.png").unlink()
    else:
        (photos / "07.png").write_bytes(encode_png(255 - IMAGES[7]))
    with pytest.raises(DataError, match=r"1 deleted or changed \(07\.png\)") as refused:
        recorded_parts(run, config, keep_parts=keep_parts)
    assert str(refused.value).endswith("restore them")
    assert ("1 added (07.png)" in str(refused.value)) == (how == "edited")


def test_renamed_images_are_another_order(config: TrainConfig, run: Path, photos: Path) -> None:
    before = names_in(recorded_parts(run, config))
    (photos / "00.png").rename(photos / "zz.png")
    with pytest.raises(DataError, match="another order"):
        recorded_parts(run, config)
    assert names_in(recorded_parts(run, config, keep_parts=True)) == before


def test_many_changes_are_counted_and_three_are_named(config: TrainConfig, run: Path, photos: Path) -> None:
    for i in range(5):
        (photos / f"{i:02d}.png").unlink()
    with pytest.raises(DataError, match=r"5 deleted or changed \(\d\d\.png, \d\d\.png, \d\d\.png, …\)"):
        recorded_parts(run, config)


def test_names_that_are_not_utf_8_are_recorded(config: TrainConfig, photos: Path, tmp_path: Path) -> None:
    odd = photos / "caf\udce9.png"
    (photos / "00.png").rename(odd)
    (tmp_path / "run").mkdir()
    write_record(tmp_path / "run", new_parts(config)[1])
    odd.unlink()
    with pytest.raises(DataError, match="caf\udce9"):
        recorded_parts(tmp_path / "run", config)


def test_a_run_of_an_earlier_release_is_taken_with_a_warning(
    config: TrainConfig, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run / RECORD).unlink()
    with caplog.at_level(logging.WARNING):
        assert names_in(recorded_parts(run, config)) == names_in(new_parts(config)[0])
    assert "nobody can tell whether its images have changed" in caplog.text


def test_a_damaged_record_is_an_error(config: TrainConfig, run: Path) -> None:
    (run / RECORD).write_bytes((run / RECORD).read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=RECORD):
        recorded_parts(run, config)
