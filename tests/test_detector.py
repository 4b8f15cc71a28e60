"""The adapter with PyOD's methods."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import ddaebm

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def model() -> ddaebm.Model:
    return ddaebm.load(device="cpu")


@pytest.fixture(scope="module")
def mixed() -> NDArray[np.uint8]:
    """50 clothes, then 50 digits: (100, 28, 28)."""
    arrays = []
    for name in ("fashion-mnist-test-512.npz", "mnist-test-512.npz"):
        with np.load(FIXTURES / name) as archive:
            arrays.append(archive[archive.files[0]][:50].reshape(-1, 28, 28))
    return np.concatenate(arrays)


def test_scores_are_high_and_labels_one_for_outliers(model: ddaebm.Model, mixed: NDArray[np.uint8]) -> None:
    detector = ddaebm.Detector(model, contamination=0.1)
    scores, labels = detector.decision_function(mixed), detector.predict(mixed)
    assert scores.shape == labels.shape == (100,)
    assert np.median(scores[50:]) > np.quantile(scores[:50], 0.95)
    assert labels.dtype == np.int64
    assert labels[:50].mean() <= 0.3
    assert labels[50:].mean() >= 0.8
    np.testing.assert_array_equal(labels, scores > detector.threshold_)
    np.testing.assert_array_equal(labels, model.score(mixed).is_ood(0.1))


def test_rows_of_flattened_images_are_those_images(model: ddaebm.Model, mixed: NDArray[np.uint8]) -> None:
    detector = ddaebm.Detector(model)
    np.testing.assert_array_equal(detector.decision_function(mixed.reshape(100, -1)), detector.decision_function(mixed))
    with pytest.raises(ddaebm.InputError, match="783 values"):
        detector.predict(mixed.reshape(100, -1)[:, 1:])


@pytest.mark.parametrize("contamination", [0.0, 1e-9, 1.0, -1, float("nan")])
def test_a_rate_that_can_never_fire_is_refused(model: ddaebm.Model, contamination: float) -> None:
    with pytest.raises(ddaebm.InputError, match="contamination"):
        ddaebm.Detector(model, contamination)
