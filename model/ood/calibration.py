"""Fit the OOD score, its p-values and the statistics for explanations on held-out images."""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.ood.explain import Explainer, fit_explainer
from ddaebm.model.ood.levels import LevelStatistics, score_rows
from ddaebm.model.ood.pixels import Pixels, fit_pixels
from ddaebm.model.ood.scoring import Scorer, fit_scorer, require_enough, weights_beside
from ddaebm.model.parallel import in_order, usable_cores

BATCH = 250
LevelsOf: TypeAlias = Callable[[NDArray[np.uint8]], LevelStatistics]  # images (B, H, W, C) in the contract's form


def level_rows(levels_of: LevelsOf, pixels: Pixels, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Compute `score_rows` of images (N, H, W, C) in batches."""
    return np.concatenate([score_rows(part, levels, pixels) for part, levels in _levels(levels_of, images)])


def fit(
    levels_of: LevelsOf, reference: NDArray[np.uint8], calibration: NDArray[np.uint8]
) -> tuple[Pixels, Scorer, Explainer]:
    """Fit the OOD score of a model on images that its networks were not trained on.

    The energy maps of the reference images are computed three times, so that only a few batches are in memory at once.

    Args:
        levels_of: Runs the energy network.
        reference: Images for standardisation, uint8 (m, H, W, C).
        calibration: Images for the p-values, uint8 (n, H, W, C), disjoint from `reference`.

    Raises:
        ConfigError: There are too few images.
    """
    require_enough(len(reference), len(calibration))
    pixels = fit_pixels(lambda: (levels.energy_map for _, levels in _levels(levels_of, reference)))
    num_steps = len(pixels.pixel_mean)
    rows, calibration_rows = (level_rows(levels_of, pixels, images) for images in (reference, calibration))
    scorer = fit_scorer(rows, calibration_rows, num_steps, weights_beside(num_steps))
    return pixels, scorer, fit_explainer(calibration_rows[:, :num_steps], pixels)


def _levels(levels_of: LevelsOf, images: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.uint8], LevelStatistics]]:
    parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    return in_order(lambda part: (part, levels_of(part)), parts, usable_cores())
