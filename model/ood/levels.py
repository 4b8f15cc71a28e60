"""Compute scores from the outputs of the energy network. All engines share this code."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.ood.complexity import complexity
from ddaebm.model.ood.explain import Explainer
from ddaebm.model.ood.pixels import Pixels
from ddaebm.model.ood.scoring import Scorer, statistics
from ddaebm.model.ood.spots import boxes
from ddaebm.model.ood.tails import join


class LevelStatistics(NamedTuple):
    """Outputs of the energy network for B images at all T levels."""

    energies: NDArray[np.float32]  # (B, T)
    energy_map: NDArray[np.float32]  # (B, T, H, W); its sum over H and W is `energies`
    features: NDArray[np.float32]  # (B, T, F)

    def take(self, index: NDArray[np.integer] | slice) -> "LevelStatistics":
        """The outputs for some of the images."""
        return LevelStatistics(*(output[index] for output in self))


class Scores(NamedTuple):
    """Scores of B images."""

    energies: NDArray[np.float32]  # (B, T)
    ood_score: NDArray[np.float64]  # (B,)
    p_value: NDArray[np.float64]  # (B,)
    box: NDArray[np.int64]  # (B, 4), left, top, width, height of the spot that is the reason; zeros: the whole image is

    def take(self, index: NDArray[np.integer]) -> "Scores":
        """The scores of some of the images."""
        return Scores(self.energies[index], self.ood_score[index], self.p_value[index], self.box[index])


class Explained(NamedTuple):
    """Scores of B images with their heatmaps."""

    energies: NDArray[np.float32]  # (B, T)
    ood_score: NDArray[np.float64]  # (B,)
    p_value: NDArray[np.float64]  # (B,)
    box: NDArray[np.int64]  # (B, 4)
    heat: NDArray[np.float64]  # (B, H, W)


def explain_levels(
    scorer: Scorer, explainer: Explainer, images: NDArray[np.uint8], levels: LevelStatistics
) -> Explained:
    """Score images (B, H, W, C) from the outputs `levels` of the energy network, and give their heatmaps."""
    heat = explainer.heatmaps(images, levels.energy_map)
    return Explained(*_score(scorer, explainer, images, levels, heat), heat)


def score_levels(scorer: Scorer, explainer: Explainer, images: NDArray[np.uint8], levels: LevelStatistics) -> Scores:
    """As `explain_levels`, without heatmaps, which a score without spots does not need."""
    heat = explainer.heatmaps(images, levels.energy_map) if scorer.has_spots else None
    return _score(scorer, explainer, images, levels, heat)


def _score(
    scorer: Scorer, explainer: Explainer, images: NDArray[np.uint8], levels: LevelStatistics,
    heat: NDArray[np.float64] | None,
) -> Scores:  # fmt: skip
    rows = score_rows(images, levels, explainer.pixels)[:, : len(scorer.mean)]  # fewer in bundles of formats 5 and 6
    box = np.zeros((len(images), 4), np.int64)
    if scorer.has_spots and heat is not None:
        parts = scorer.parts(rows, heat.max((1, 2)))
        ood_score = join(parts)
        spot = parts[:, 1] > parts[:, 0]
        box[spot] = boxes(heat[spot])
    else:
        ood_score = scorer.whole(rows)
    return Scores(levels.energies, ood_score, scorer.p_value(ood_score), box)


def because(box: NDArray[np.integer]) -> str:
    """The reason for the score of an image with this box: "spot" or "whole"."""
    return "spot" if box[2] else "whole"


def score_rows(images: NDArray[np.uint8], levels: LevelStatistics, pixels: Pixels) -> NDArray[np.float64]:
    """Input rows of `Scorer`, (B, T + T·F + 2T + 4).

    The columns are log energies, features, pixel statistics and complexity.
    """
    known, of_pixels = statistics(levels.energies, levels.features), pixels.statistics(levels.energy_map)
    return np.hstack([known, of_pixels, complexity(images)])
