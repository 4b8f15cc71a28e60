"""Recalibration of a real bundle: its own images reproduce it, other images change it, bad input is refused."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ddaebm.model.bundle import Bundle, load_bundle
from ddaebm.model.errors import BundleError, ConfigError, DataError
from ddaebm.model.images.arrays import fingerprints
from ddaebm.model.ood.calibration import BATCH, fit, look, score_images
from ddaebm.model.ood.levels import score_rows
from ddaebm.model.recalibration import calibrate
from ddaebm.model.runtime import OnnxEngine
from ddaebm.training.data import Splits, load_data, split

Images = NDArray[np.uint8]


@pytest.fixture(scope="module")
def runtime(debug_bundle: Path) -> OnnxEngine:
    return OnnxEngine(load_bundle(debug_bundle), device="cpu", threads=1)


@pytest.fixture(scope="module")
def bundle(runtime: OnnxEngine) -> Bundle:
    return runtime.bundle


@pytest.fixture(scope="module")
def splits(bundle: Bundle) -> Splits:
    return split(load_data("shapes", bundle.config))


@pytest.fixture(scope="module")
def unseen(bundle: Bundle, splits: Splits) -> Images:
    """The calibration images without duplicates of training images, which the synthetic shapes contain."""
    images: Images = splits.calibration
    return images[~np.isin(fingerprints(images), bundle.fingerprints())]


def test_rows_do_not_depend_on_the_batching(runtime: OnnxEngine) -> None:
    images = load_data("shapes", runtime.bundle.config)[: BATCH + 3]
    fitted, pixels = runtime.bundle.fitted, runtime.explainer.pixels
    levels = look(runtime.level_statistics, images)
    rows = score_rows(images, levels, pixels)
    assert rows.shape == (BATCH + 3, 4 + levels.features[0].size + 12)
    last = look(runtime.level_statistics, images[-3:])
    np.testing.assert_allclose(rows[-3:], score_rows(images[-3:], last, pixels), rtol=1e-4, atol=1e-5)
    together, alone = (score_images(runtime.level_statistics, fitted, part) for part in (images, images[-3:]))
    np.testing.assert_allclose(together.ood_score[-3:], alone.ood_score, rtol=1e-4)


def test_pixels_are_standardised_by_the_reference_images(runtime: OnnxEngine, splits: Splits) -> None:
    reference = splits.reference[:BATCH]
    twice = fit(runtime.level_statistics, np.concatenate([reference, reference]), splits.calibration[:30])
    pixels = twice.explainer.pixels
    maps = runtime.level_statistics(reference).energy_map
    np.testing.assert_allclose(pixels.pixel_mean, maps.mean(0), rtol=1e-4)
    wide = maps.std(0) > maps.std(0).mean((1, 2), keepdims=True)
    np.testing.assert_allclose(pixels.pixel_std[wide], maps.std(0)[wide], rtol=1e-3)
    logs = np.log(maps + 0.03 * maps.mean((0, 2, 3), keepdims=True))
    np.testing.assert_allclose(pixels.log_mean, logs.mean(0), rtol=1e-3, atol=1e-4)
    wide = logs.std(0) > logs.std(0).mean((1, 2), keepdims=True)
    np.testing.assert_allclose(pixels.log_std[wide], logs.std(0)[wide], rtol=1e-3)


def test_a_fitted_score_has_the_pixels_of_its_images_in_it(runtime: OnnxEngine, splits: Splits) -> None:
    fitted = fit(runtime.level_statistics, splits.reference, splits.calibration)
    pixels, scorer = fitted.explainer.pixels, fitted.scorer
    for field in ("pixel_mean", "pixel_std", "log_offset", "log_mean", "log_std"):
        np.testing.assert_allclose(getattr(pixels, field), getattr(runtime.explainer.pixels, field), rtol=1e-5)
    scores = score_images(runtime.level_statistics, fitted, splits.calibration).ood_score
    np.testing.assert_allclose(np.sort(scores), runtime.scorer.calibration_scores, rtol=1e-3)
    assert np.abs(scorer.surprise[:16, -12:]).max() == 0
    assert np.abs(scorer.surprise[16:, -12:]).max(1).min() > 0


def test_nothing_to_fit_on_is_refused(runtime: OnnxEngine, splits: Splits) -> None:
    with pytest.raises(ConfigError, match="cannot calibrate with 1 reference and 5 calibration images"):
        fit(runtime.level_statistics, splits.reference[:1], splits.calibration[:5])


def test_its_own_images_give_the_same_p_values(bundle: Bundle, unseen: Images, tmp_path: Path) -> None:
    again, before, _ = calibrate(bundle, unseen, tmp_path / "again", 0.05)
    for ours, theirs in (
        (again.scorer.calibration_scores, bundle.scorer.calibration_scores),
        (again.explainer.log_energies[0], bundle.explainer.log_energies[0]),
    ):
        places = np.searchsorted(theirs, ours * (1 - 1e-4))  # all of ours are among theirs
        np.testing.assert_allclose(theirs[places], ours, rtol=2e-4, atol=1e-4)
    assert before == pytest.approx(0.05, abs=4 / len(unseen))
    assert again.digest != bundle.digest
    assert again.name == bundle.name


def test_shifted_images_are_ordinary_once_calibrated_on(bundle: Bundle, tmp_path: Path) -> None:
    """Inverted images are in distribution after recalibration on half of them."""
    inverted = 255 - load_data("shapes", bundle.config)[:600]
    new, before, _ = calibrate(bundle, inverted[:300], tmp_path / "new", 0.1)
    assert before > 0.5
    scores = OnnxEngine(new, device="cpu", threads=1).score(inverted[300:])
    assert (scores.p_value <= 0.1).mean() < 0.2
    assert new.scorer.threshold(0.1) > bundle.scorer.threshold(0.1)
    for name in set(bundle.files) - {"calibration.npz", "README.md"}:
        assert new.files[name] == bundle.files[name]
    card = new.read("README.md").decode()
    assert card.startswith(bundle.read("README.md").decode())
    assert "300 other images" in card
    with pytest.raises(BundleError, match="is the bundle to calibrate"):
        calibrate(new, inverted[300:], tmp_path / "x" / ".." / "new", 0.1)
    twice, _, _ = calibrate(new, inverted[300:], tmp_path / "twice", 0.1, "night")
    assert (new.name, twice.name) == (bundle.name, "night")
    assert twice.read("README.md").decode().count("Calibrated anew") == 1


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 19), (0.01, 99), (0.3, 3)])
def test_too_few_images_are_refused_with_the_number_needed(
    bundle: Bundle, unseen: Images, tmp_path: Path, alpha: float, needed: int
) -> None:
    with pytest.raises(DataError, match=f"{needed - 1} images cannot give .* at least {needed} images,"):
        calibrate(bundle, unseen[: needed - 1], tmp_path / "out", alpha)
    assert not (tmp_path / "out").exists()
    new, _, _ = calibrate(bundle, unseen[:needed], tmp_path / "out", alpha)
    assert new.scorer.smallest_p <= alpha
    assert math.isfinite(new.scorer.threshold(alpha))


@pytest.mark.parametrize("part", ["train", "reference"])
def test_images_that_were_trained_on_are_refused(
    bundle: Bundle, splits: Splits, unseen: Images, tmp_path: Path, part: str
) -> None:
    images = unseen[:100].copy()
    images[[7, 30]] = getattr(splits, part)[[3, 4]]
    with pytest.raises(DataError, match=r"2 of 100 images were used for training \(indices from 0: 7, 30\)"):
        calibrate(bundle, images, tmp_path / "out", 0.05)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_bundle_is_not_written_over(bundle: Bundle, unseen: Images, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="not a bundle"):
        calibrate(bundle, unseen, tmp_path, 0.05)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
