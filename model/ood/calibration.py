"""Fit the OOD score, its p-values and the statistics for explanations on held-out images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.noise import permutation
from ddaebm.model.ood.dense import Basis, fit_dense
from ddaebm.model.ood.explain import Explainer, fit_explainer
from ddaebm.model.ood.levels import (
    LevelStatistics,
    Scores,
    heat_of,
    join_batches,
    score_levels,
    score_rows,
    spot_statistics,
)
from ddaebm.model.ood.pixels import fit_pixels
from ddaebm.model.ood.scoring import (
    DEFAULT_FORM,
    Scorer,
    calibrate_scorer,
    fit_scorer,
    require_enough,
    weights_beside,
    with_spots,
)
from ddaebm.model.ood.spots import fit_spots
from ddaebm.model.parallel import in_order, rows_within, usable_cores
from ddaebm.model.progress import Tick, say_nothing

BATCH = 64  # images a thread takes at a time
FOLDS = 5
LevelsOf: TypeAlias = Callable[[NDArray[np.uint8]], LevelStatistics]  # images (B, H, W, C) in the contract's form


@dataclass(frozen=True)
class Fitted:
    """A score and its explanations."""

    scorer: Scorer
    explainer: Explainer

    def score(self, images: NDArray[np.uint8], levels: LevelStatistics) -> Scores:
        return score_levels(self.scorer, self.explainer, images, levels)


class PlacesFit(NamedTuple):
    """How the places of images that are scored densely are fitted; see `model.ood.dense.fit_dense`."""

    basis: Basis
    form: str
    region: NDArray[np.float32]  # (h, w)


@dataclass(frozen=True)
class CrossFitted:
    """A score that is not calibrated, and the fits that leave out a fold each, for what would be biased otherwise."""

    fitted: Fitted
    fold: NDArray[np.int64]  # of each reference image, (N,)
    without: list[Fitted]  # fitted to all images but those of a fold; with the tails of `fitted`
    scores: NDArray[np.float64]  # of each reference image by the fit that leaves it out, (N,)


def look(levels_of: LevelsOf, images: NDArray[np.uint8], tick: Tick = say_nothing) -> LevelStatistics:
    """The outputs of the energy network for images (N, H, W, C), all in memory."""
    found = []
    for part, levels in _batches(levels_of, images):
        found.append(levels)
        tick(len(part))
    return join_batches(found)


def score_images(levels_of: LevelsOf, fitted: Fitted, images: NDArray[np.uint8], tick: Tick = say_nothing) -> Scores:
    """Score images (N, H, W, C) in batches."""
    found = []
    for part, levels in _batches(levels_of, images):
        found.append(fitted.score(part, levels))
        tick(len(part))
    return Scores(*(np.concatenate(outputs) for outputs in zip(*found, strict=True)))


def cross_fit(
    images: NDArray[np.uint8],
    levels: LevelStatistics,
    calibration: int,
    seed: int = 0,
    form: str = DEFAULT_FORM,
    places: PlacesFit | None = None,
) -> CrossFitted:
    """Fit the score to ordinary images (N, H, W, C), N >= 2, with the network's outputs `levels` for them.

    Each of five folds is scored by a fit to the others. These scores are as those of new images, which those of images
    that a score was fitted to are not. The tails of the two statistics are fitted to them.

    Args:
        calibration: Number of images that will give the p-values.
        seed: Draws the folds.
        form: One of `model.ood.scoring.FORMS`.
        places: How the places of images that are scored densely are fitted; None: the images are not.
    """
    fold = np.empty(len(images), np.int64)
    fold[permutation(len(images), seed)] = np.arange(len(images)) % min(FOLDS, len(images))
    without = [_fit(images, levels, np.flatnonzero(fold != number), form, places) for number in range(fold.max() + 1)]
    whole, hottest = np.empty(len(images)), np.empty((len(images), 1 if places is None else 2))
    for number, left_out in enumerate(without):
        mine = np.flatnonzero(fold == number)
        part, outputs = images[mine], levels.take(mine)
        whole[mine] = left_out.scorer.whole(score_rows(part, outputs, left_out.explainer.pixels))
        hottest[mine] = spot_statistics(left_out.explainer, heat_of(left_out.explainer, part, outputs))
    complete = _fit(images, levels, np.arange(len(images)), form, places)
    complete = replace(complete, scorer=with_spots(complete.scorer, whole, hottest, calibration))
    tails = complete.scorer.tails
    without = [replace(one, scorer=replace(one.scorer, tails=tails)) for one in without]
    scores = np.empty(len(images))
    for number, left_out in enumerate(without):
        mine = np.flatnonzero(fold == number)
        scores[mine] = left_out.score(images[mine], levels.take(mine)).ood_score
    return CrossFitted(complete, fold, without, scores)


def calibrated(fitted: Fitted, scores: Scores) -> Fitted:
    """The same score with p-values from the `scores` of calibration images."""
    explainer = fit_explainer(scores.energies, fitted.explainer.pixels, fitted.explainer.spots)
    return Fitted(calibrate_scorer(fitted.scorer, scores.ood_score), explainer)


def fit(levels_of: LevelsOf, reference: NDArray[np.uint8], calibration: NDArray[np.uint8]) -> Fitted:
    """Fit the OOD score of a model on images that its networks were not trained on, and calibrate it.

    The energy maps of the reference images are in memory, 4·T·H·W bytes each.

    Args:
        levels_of: Runs the energy network.
        reference: Images for the score, uint8 (m, H, W, C).
        calibration: Images for the p-values, uint8 (n, H, W, C), disjoint from `reference`.

    Raises:
        ConfigError: There are too few images.
    """
    require_enough(len(reference), len(calibration))
    fitted = cross_fit(reference, look(levels_of, reference), len(calibration)).fitted
    return calibrated(fitted, score_images(levels_of, fitted, calibration))


def _fit(
    images: NDArray[np.uint8], levels: LevelStatistics, index: NDArray[np.int64], form: str, places: PlacesFit | None
) -> Fitted:
    """The score of the images at `index`, without tails."""
    images, levels = images[index], levels.take(index)
    pixels, num_steps = fit_pixels(levels.energy_map), levels.energies.shape[1]
    scorer = fit_scorer(score_rows(images, levels, pixels), num_steps, weights_beside(num_steps), form)
    if places is None:
        return Fitted(scorer, fit_explainer(levels.energies, pixels, fit_spots(pixels, images, levels.energy_map)))
    assert levels.places is not None
    spots = fit_dense(places.basis, levels.places, places.form, places.region)
    return Fitted(scorer, fit_explainer(levels.energies, pixels, spots))


def _batches(levels_of: LevelsOf, images: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.uint8], LevelStatistics]]:
    size = rows_within(BATCH, images.shape[1] * images.shape[2])
    parts = (images[start : start + size] for start in range(0, len(images), size))
    return in_order(lambda part: (part, levels_of(part)), parts, usable_cores())
