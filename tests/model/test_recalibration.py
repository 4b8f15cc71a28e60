"""`calibrate`: what the old calibration says of the new images, to the last image."""

from pathlib import Path

import numpy as np
import pytest

from ddaebm.model.bundle import load_bundle
from ddaebm.model.errors import DataError
from ddaebm.model.images.arrays import fingerprints
from ddaebm.model.recalibration import calibrate
from ddaebm.model.runtime import OnnxEngine
from ddaebm.training.data import load_data, split

STRANGE = np.random.default_rng(0).integers(200, size=(60, 16, 16, 1), dtype=np.uint8)


def test_an_image_at_alpha_counts_as_flagged(debug_bundle: Path, tmp_path: Path) -> None:
    old = load_bundle(debug_bundle)
    images = split(load_data("shapes", old.config)).choice
    images = images[~np.isin(fingerprints(images), old.fingerprints())]  # some shapes are there twice
    p_values = OnnxEngine(old).score(images).p_value
    alpha = float(np.sort(p_values)[len(images) // 2])
    assert (p_values < alpha).mean() < (p_values <= alpha).mean() < 1
    _, before, _ = calibrate(old, images, tmp_path / "new", alpha)
    assert before == (p_values <= alpha).mean()


def test_the_fewest_images_that_can_give_alpha_are_enough(debug_bundle: Path, tmp_path: Path) -> None:
    old = load_bundle(debug_bundle)
    new, _, _ = calibrate(old, STRANGE[:19], tmp_path / "new", 0.05)
    assert new.scorer.smallest_p == 0.05
    with pytest.raises(DataError, match=r"18 images cannot give a p-value of 0\.05; give at least 19"):
        calibrate(old, STRANGE[:18], tmp_path / "other", 0.05)
