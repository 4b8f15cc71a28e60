"""How near a bundle's samples come to real images, seen through a classifier's features."""

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
COUNTED = 1_000  # samples whose classes are counted


def quality_report(
    sample: Callable[[NDArray[np.int64]], NDArray[np.uint8]],
    classifier: Classifier,
    classifier_sha256: str,
    test: NDArray[np.uint8],
    unseen: NDArray[np.uint8],
    count: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Distances of `count` samples from the `test` images and, beside them, those of other real images.

    Args:
        sample: seeds (B,) -> images (B, H, W, C).
        test, unseen: real images (N, H, W, C) that neither the networks nor the classifier were trained on. The
            numbers of `unseen`, at most `count` of them, are what a perfect model would reach: the floor.

    Returns:
        `fd_classifier` (a Fréchet distance, not FID: another network's features), `kid`, `precision` and `recall` of
        the samples and under `floor` of the unseen images; `classes`, as the classifier sees the first 1,000 samples.
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
