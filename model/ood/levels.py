"""Compute scores from the outputs of the energy network. All engines share this code."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.ood.complexity import complexity
from ddaebm.model.ood.dense import Dense, hot_statistics
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
    # The next two are given where images are scored densely; the outputs above then belong to the reduced images.
    native: NDArray[np.uint8] | None = None  # (B, H, W, C), the images reduced to the networks' own form
    places: NDArray[np.float16] | None = None  # (B, h, w, R), `model.ood.dense.Basis.project`

    def take(self, index: NDArray[np.integer] | slice) -> "LevelStatistics":
        """The outputs for some of the images."""
        return LevelStatistics(
            self.energies[index], self.energy_map[index], self.features[index],
            None if self.native is None else self.native[index], None if self.places is None else self.places[index],
        )  # fmt: skip


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
    heat: NDArray[np.float64]  # (B, H, W); of images that are scored densely (B, h, w), a value for each place


def join_batches(batches: Sequence[LevelStatistics]) -> LevelStatistics:
    """The outputs of several batches as one."""
    columns: Any = [None if column[0] is None else np.concatenate(column) for column in zip(*batches, strict=True)]
    return LevelStatistics(*columns)


def heat_of(explainer: Explainer, images: NDArray[np.uint8], levels: LevelStatistics) -> NDArray[np.float64]:
    """Heat (B, H, W) of images (B, H, W, C); of images that are scored densely, of each place (B, h, w)."""
    if isinstance(explainer.spots, Dense):
        assert levels.places is not None
        return explainer.spots.heat(levels.places)
    return explainer.heatmaps(images, levels.energy_map)


def spot_statistics(explainer: Explainer, heat: NDArray[np.float64]) -> NDArray[np.float64]:
    """The statistics of spots that enter the score, from heat (B, h, w): (B, 1), or (B, 2) of a dense score."""
    return hot_statistics(heat) if isinstance(explainer.spots, Dense) else heat.max((1, 2))[:, None]


def explain_levels(
    scorer: Scorer, explainer: Explainer, images: NDArray[np.uint8], levels: LevelStatistics
) -> Explained:
    """Score images (B, H, W, C) from the outputs `levels` of the energy network, and give their heatmaps."""
    heat = heat_of(explainer, images, levels)
    return Explained(*_score(scorer, explainer, images, levels, heat), heat)


def score_levels(scorer: Scorer, explainer: Explainer, images: NDArray[np.uint8], levels: LevelStatistics) -> Scores:
    """As `explain_levels`, without heatmaps, which a score without spots does not need."""
    heat = heat_of(explainer, images, levels) if scorer.has_spots else None
    return _score(scorer, explainer, images, levels, heat)


def _score(
    scorer: Scorer, explainer: Explainer, images: NDArray[np.uint8], levels: LevelStatistics,
    heat: NDArray[np.float64] | None,
) -> Scores:  # fmt: skip
    rows = score_rows(images, levels, explainer.pixels)[:, : len(scorer.mean)]  # fewer in bundles of formats 5 and 6
    box = np.zeros((len(images), 4), np.int64)
    if scorer.has_spots and heat is not None:
        parts = scorer.parts(rows, spot_statistics(explainer, heat))
        ood_score = join(parts)
        spot = parts[:, 1:].max(1) > parts[:, 0]
        box[spot] = boxes(heat[spot]) * (images.shape[1] // heat.shape[1])
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
    images = images if levels.native is None else levels.native
    known, of_pixels = statistics(levels.energies, levels.features), pixels.statistics(levels.energy_map)
    return np.hstack([known, of_pixels, complexity(images)])
