"""Evaluate the OOD score: false-alarm rates on test images, and detection of other data sets."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.bundle import Bundle
from ddaebm.model.errors import DataError
from ddaebm.model.images.arrays import fingerprints
from ddaebm.model.images.decode import MAX_PIXELS
from ddaebm.model.images.readers import read_images
from ddaebm.model.ood.calibration import Fitted, LevelsOf, score_images
from ddaebm.model.ood.conformal import false_alarm_interval
from ddaebm.model.ood.power import auroc
from ddaebm.training.data import Splits, split

logger = logging.getLogger("ddaebm.training")

ALPHAS = (0.01, 0.05, 0.1)


def known_parts(bundle: Bundle, train: str, max_pixels: int = MAX_PIXELS) -> Splits:
    """Read the training data of `bundle` at the PATH `train`, and split it as for training.

    Raises:
        DataError: The data cannot be read, or its held-out part has images that the bundle was trained on.
    """
    parts = split(read_images(train, bundle.native, max_pixels))
    if parts.digests() != bundle.splits:
        known = np.count_nonzero(np.isin(fingerprints(parts.held_out), bundle.fingerprints()))
        if known:
            raise DataError(
                f"{train}: not the images that {bundle.name} was trained on, in their order: {known} of"
                f" {len(parts.held_out)} that would count as unseen were trained on; give the same images as then"
            )
    return parts


def warn_of_trained(path: str, images: NDArray[np.uint8], trained_on: NDArray[np.uint64]) -> None:
    """Log a warning if some test images are among the training images, whose fingerprints are `trained_on`."""
    if known := np.count_nonzero(np.isin(fingerprints(images), trained_on)):
        logger.warning("%s: %d of %d test images were trained on, so fewer give a false alarm than new images would",
                       path, known, len(images))  # fmt: skip


def ood_report(
    levels_of: LevelsOf, fitted: Fitted, test: NDArray[np.uint8], ood: Mapping[str, NDArray[np.uint8]]
) -> dict[str, Any]:
    """Measure false-alarm rates on `test`, and AUROC and detection rates against each set of `ood`.

    Args:
        levels_of: Runs the energy network.
        fitted: The calibrated score.
        test: In-distribution images that were used neither for training nor for calibration, uint8 (N, H, W, C).
        ood: OOD images by name, uint8 (M, H, W, C).

    Returns:
        The evaluation section of the manifest.
    """
    inside = score_images(levels_of, fitted, test)
    size = len(fitted.scorer.calibration_scores)
    possible = [alpha for alpha in ALPHAS if alpha >= fitted.scorer.smallest_p]
    alarms = []
    for alpha in possible:
        low, high = false_alarm_interval(alpha, size)
        alarms.append({"alpha": alpha, "observed": float((inside.p_value <= alpha).mean()), "low": low, "high": high})
    sets = {}
    for name, images in ood.items():
        outside = score_images(levels_of, fitted, images)
        sets[name] = {
            "images": len(images),
            "auroc": auroc(inside.ood_score, outside.ood_score),
            "auroc_of_each_energy": list(map(auroc, inside.energies.T, outside.energies.T)),
            "detected": {str(alpha): float((outside.p_value <= alpha).mean()) for alpha in possible},
        }
    return {"test_images": len(test), "false_alarms": alarms, "ood": sets}
