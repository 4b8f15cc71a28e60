"""Outputs of the energy network -> scores: one path for every engine."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.ood.pixels import Pixels
from ddaebm.model.ood.scoring import Scorer, fine_detail, statistics


class LevelStatistics(NamedTuple):
    """What the energy network says of B images at all T noise levels."""

    energies: NDArray[np.float32]  # (B, T)
    energy_map: NDArray[np.float32]  # (B, T, H, W), sums to the energies
    features: NDArray[np.float32]  # (B, T, F)


class Scores(NamedTuple):
    energies: NDArray[np.float32]  # (B, T)
    ood_score: NDArray[np.float64]  # (B,)
    p_value: NDArray[np.float64]  # (B,)


class Explained(NamedTuple):
    """`Scores`, and where the energy sits."""

    energies: NDArray[np.float32]  # (B, T)
    ood_score: NDArray[np.float64]  # (B,)
    p_value: NDArray[np.float64]  # (B,)
    energy_map: NDArray[np.float32]  # (B, T, H, W)


def explain_levels(scorer: Scorer, pixels: Pixels, images: NDArray[np.uint8], levels: LevelStatistics) -> Explained:
    ood_score = scorer.ood_score(score_rows(images, levels, pixels))
    return Explained(levels.energies, ood_score, scorer.p_value(ood_score), levels.energy_map)


def score_rows(images: NDArray[np.uint8], levels: LevelStatistics, pixels: Pixels) -> NDArray[np.float64]:
    """What the score is computed of, (B, T + T·F + 2T + 1): log energies, features, statistics of pixels, detail."""
    known, of_pixels = statistics(levels.energies, levels.features), pixels.statistics(levels.energy_map)
    return np.hstack([known, of_pixels, fine_detail(images)])
