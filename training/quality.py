"""Measure the quality of samples: compare them with real images in the feature space of a classifier."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddaebm.model.noise import image_seeds
from ddaebm.model.progress import progress
from ddaebm.training.classifier import Classifier, describe_images
from ddaebm.training.modes import frechet_distance, kernel_distance, precision_recall

BATCH = 250
COUNTED = 1_000  # number of samples whose classes are counted


def quality_report(
    sample: Callable[[NDArray[np.int64]], NDArray[np.uint8]],
    classifier: Classifier,
    classifier_sha256: str,
    test: NDArray[np.uint8],
    unseen: NDArray[np.uint8],
    count: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare `count` samples, and as a reference other real images, with the `test` images.

    Args:
        sample: Maps seeds (B,) to images (B, H, W, C).
        test, unseen: Real images (N, H, W, C) that neither the networks nor the classifier were trained on. The first
            `count` images of `unseen` give the floor, the result of a perfect model.

    Returns:
        `fd_classifier`, `kid`, `precision` and `recall` of the samples; the same of the unseen images under `floor`;
        and under `classes` how often the classifier predicts each class for the first 1,000 samples. `fd_classifier`
        is a Fréchet distance like FID, but in the features of this classifier.
    """
    real, _ = describe_images(classifier, test)
    floor, _ = describe_images(classifier, unseen[:count])
    samples = []
    with progress("sample", count) as tick:
        for start in range(0, count, BATCH):
            seeds = image_seeds(seed, count)[start : start + BATCH]
            samples.append(sample(seeds))
            tick(len(seeds))
    generated, labels = describe_images(classifier, np.concatenate(samples))
    counts = np.bincount(labels[:COUNTED], minlength=len(classifier.classes))
    return {
        "images": count,
        "seed": seed,
        "classifier": classifier_sha256,
        **_distances(real, generated),
        "floor": {"images": len(floor), **_distances(real, floor)},
        "classes": dict(zip(classifier.classes, counts.tolist(), strict=True)),
    }


def _distances(real: Tensor, other: Tensor) -> dict[str, float]:
    precision, recall = precision_recall(real, other)
    return {
        "fd_classifier": frechet_distance(real, other),
        "kid": kernel_distance(real, other),
        "precision": precision,
        "recall": recall,
    }
