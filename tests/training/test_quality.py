"""The quality report for known samples."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ddaebm.model.noise import image_seeds
from ddaebm.training.classifier import Classifier, describe_images, train_classifier
from ddaebm.training.modes import frechet_distance, kernel_distance, precision_recall
from ddaebm.training.quality import quality_report
from tests.training.test_classifier import bars

DATA = bars(900)
TEST, UNSEEN, OTHER = np.split(DATA.images, 3)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return train_classifier(bars(), epochs=3)[0]


def test_samples_are_measured_as_the_unseen_are(classifier: Classifier) -> None:
    asked = []

    def sample(seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
        asked.extend(seeds.tolist())
        return UNSEEN[len(asked) - len(seeds) : len(asked)]

    report = quality_report(sample, classifier, "sha", TEST, UNSEEN, count=280, seed=5)
    assert asked == image_seeds(5, 280).tolist()
    floor = report["floor"]
    assert (report["images"], floor["images"], report["classifier"]) == (280, 280, "sha")
    assert {name: report[name] for name in floor} == floor  # they are the same images
    test, unseen = describe_images(classifier, TEST)[0], describe_images(classifier, UNSEEN[:280])[0]
    assert floor["fd_classifier"] == pytest.approx(frechet_distance(test, unseen))
    assert floor["kid"] == pytest.approx(kernel_distance(test, unseen))
    assert (floor["precision"], floor["recall"]) == precision_recall(test, unseen)
    lying = (describe_images(classifier, UNSEEN[:280])[1]).sum()
    assert report["classes"] == {"standing": 280 - lying, "lying": lying}


def test_noise_is_far_from_bars(classifier: Classifier) -> None:
    noise = np.random.default_rng(1).integers(0, 256, UNSEEN.shape, dtype=np.uint8)
    report = quality_report(lambda seeds: noise[: len(seeds)], classifier, "sha", TEST, UNSEEN, count=250)
    assert report["fd_classifier"] > 10 * report["floor"]["fd_classifier"]
    assert report["kid"] > 10 * abs(report["floor"]["kid"])
    assert report["recall"] < 0.5 < report["floor"]["recall"]
