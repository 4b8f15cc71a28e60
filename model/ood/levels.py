"""Compute scores from the outputs of the energy network. All engines share this code."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.ood.pixels import Pixels
from ddaebm.model.ood.scoring import Scorer, fine_detail, statistics


class LevelStatistics(NamedTuple):
    """Outputs of the energy network for B images at all T levels."""

    energies: NDArray[np.float32]  # (B, T)
    energy_map: NDArray[np.float32]  # (B, T, H, W); its sum over H and W is `energies`
    features: NDArray[np.float32]  # (B, T, F)


class Scores(NamedTuple):
    """Scores of B images."""

    energies: NDArray[np.float32]  # (B, T)
    ood_score: NDArray[np.float64]  # (B,)
    p_value: NDArray[np.float64]  # (B,)


class Explained(NamedTuple):
    """Scores of B images with the energy of each pixel."""

    energies: NDArray[np.float32]  # (B, T)
    ood_score: NDArray[np.float64]  # (B,)
    p_value: NDArray[np.float64]  # (B,)
    energy_map: NDArray[np.float32]  # (B, T, H, W)


def explain_levels(scorer: Scorer, pixels: Pixels, images: NDArray[np.uint8], levels: LevelStatistics) -> Explained:
    """Score images (B, H, W, C) from the outputs `levels` of the energy network."""
    ood_score = scorer.ood_score(score_rows(images, levels, pixels))
    return Explained(levels.energies, ood_score, scorer.p_value(ood_score), levels.energy_map)


def score_rows(images: NDArray[np.uint8], levels: LevelStatistics, pixels: Pixels) -> NDArray[np.float64]:
    """Input rows of `Scorer`, (B, T + T·F + 2T + 1).

    The columns are log energies, features, pixel statistics and fine detail.
    """
    known, of_pixels = statistics(levels.energies, levels.features), pixels.statistics(levels.energy_map)
    return np.hstack([known, of_pixels, fine_detail(images)])
