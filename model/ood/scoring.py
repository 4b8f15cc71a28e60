"""Level statistics -> one OOD score, and the score -> a conformal p-value.

The score adds a Mahalanobis distance over the energies and hidden features of all levels, and the residual of each
energy given the features: a high energy may mean a rich image (a striped shirt) or one of another kind, and the
features tell which. Two statistics of the standardised pixels of each level (`model/ood/pixels.py`), and the amount of
fine detail in the image itself, enter as residuals given energies and features:

    S = distance² + D/T · { Σ_k [ ¼ max(0, r_k)² + ⅛ min(0, r_k)² + ⅛ z_k² + 1/16 a_k² + 1/16 b_k² ] + ¼ d² }

with r the residuals of the energies, z the energies as they are, a and b the residuals of the largest pixel and of the
pixels' 2-norm, d that of the detail, all in standard deviations, and D = T + T·F. It is fitted on the reference part of
the held-out data and calibrated on the calibration part, which nothing else sees. How the form was chosen: docs/ood.md.
Conformal p-values: Bates, Candès, Lei, Romano, Sesia 2023, *Testing for outliers with conformal p-values*.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.errors import ConfigError
from ddaebm.model.ood.conformal import firing
from ddaebm.model.ood.explain import log_energies

Floats = NDArray[np.float64]

_RIDGE = 0.01  # beside the features' variance of 1: some of them hardly differ
_LEAST_DETAIL = 0.1  # grey levels: an empty image has a logarithm too


def statistics(energies: NDArray[np.floating], features: NDArray[np.floating]) -> Floats:
    """Energies (B, T) and features (B, T, F) -> one row (B, T + T·F) an image: log energies, then features."""
    return np.concatenate([log_energies(energies), features.reshape(len(features), -1)], axis=1, dtype=np.float64)


def fine_detail(images: NDArray[np.uint8]) -> Floats:
    """Images (B, H, W, C) -> (B, 1): the logarithm of the mean absolute diagonal detail, in grey levels.

    The finest diagonal band of an undecimated Haar transform is x_ij - x_(i+1)j - x_i(j+1) + x_(i+1)(j+1). Edges along
    the axes and slow changes of light have none of it, noise has most, blur least.
    """
    rows = np.diff(images.astype(np.int16), axis=1)
    detail = np.abs(np.diff(rows, axis=2)).mean((1, 2, 3), dtype=np.float64)
    logs: Floats = np.log(detail + _LEAST_DETAIL)[:, None]
    return logs


def weights_beside(levels: int) -> tuple[float, ...]:
    """Of the residuals that `model.ood.levels.score_rows` has after its D columns: a and b of each level, and d."""
    return (*(1 / 16,) * (2 * levels), 1 / 4)


@dataclass(frozen=True)
class Scorer:
    """S(row) = ‖whitening·(row - mean)[:D]‖² + ‖max(0, surprise·(row - mean))‖², and the scores of held-out images."""

    mean: Floats  # (D + P,), P = 2T + 1
    whitening: Floats  # (D, D), the transposed Cholesky factor of the precision matrix
    surprise: Floats  # (4T + 2P, D + P): r, -r, z, -z, then a, b and d, -a, -b and -d of the formula; weighted
    calibration_scores: Floats  # (n,), ascending

    def ood_score(self, rows: Floats) -> Floats:
        """High means out of distribution; (B,), unitless. `rows` (B, D + P) as of `model.ood.levels.score_rows`."""
        centred = rows - self.mean
        # Dot products in place of a matrix product: a row's score is then the same in any batch, to the last bit, and
        # BLAS has no reason to wake threads of its own, whose waiting takes the cores that inference runs on.
        distance = np.square(np.vecdot(centred[:, None, : len(self.whitening)], self.whitening)).sum(1)
        scores: Floats = distance + np.square(np.maximum(np.vecdot(centred[:, None], self.surprise), 0)).sum(1)
        return scores

    def p_value(self, scores: Floats) -> Floats:
        """p = (1 + #{S_i >= S}) / (n + 1), so that P(p <= alpha) <= alpha for an image like the calibration's.

        Ties count against the alarm.
        """
        n = len(self.calibration_scores)
        below = np.searchsorted(self.calibration_scores, scores, side="left")
        p: Floats = (1 + n - below) / (n + 1)
        return p

    def threshold(self, alpha: float) -> float:
        """The score above which p <= alpha; infinite where alpha is below the smallest p."""
        n = len(self.calibration_scores)
        j = firing(alpha, n)
        return float(self.calibration_scores[n - j]) if j else math.inf

    @property
    def smallest_p(self) -> float:
        """1/(n+1): an alpha below it can never raise an alarm."""
        return 1 / (len(self.calibration_scores) + 1)

    @property
    def default_alpha(self) -> float:
        """0.05, or the smallest that can raise an alarm where that is more."""
        return max(0.05, self.smallest_p)


def fit_scorer(reference: Floats, calibration: Floats, levels: int, beside: Sequence[float] = ()) -> Scorer:
    """Fit on `reference` rows (m, D + P), calibrate on disjoint `calibration` rows (n, D + P).

    The covariance is shrunk towards the diagonal by the oracle-approximating weight (Chen, Wiesel,
    Eldar, Hero 2010, *Shrinkage algorithms for MMSE covariance estimation*, eq. 23), on standardised
    rows, where the diagonal is the identity that the formula speaks of.

    Args:
        levels: T, the number of log energies, which are the first columns; 0 for a distance alone.
        beside: weights of the residuals of the last P columns, which are not in the distance.

    Raises:
        ConfigError: fewer than two reference rows, or no calibration rows.
    """
    require_enough(len(reference), len(calibration))
    mean, std = reference.mean(0), np.maximum(reference.std(0), 1e-9)
    standard = (reference - mean) / std
    dim = len(mean) - len(beside)
    covariance = standard[:, :dim].T @ standard[:, :dim] / len(standard)
    shrinkage = _oas_weight(covariance, len(standard))
    covariance = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / dim * np.eye(dim)
    # row @ precision @ row = ‖L.T @ row‖² with L the Cholesky factor of the precision matrix.
    whitening = np.linalg.cholesky(np.linalg.inv(covariance)).T / std[:dim]
    surprise = _surprise(standard, levels, beside) / std
    return calibrate_scorer(Scorer(mean, whitening, surprise, np.empty(0)), calibration)


def require_enough(reference: int, calibration: int) -> None:
    """Raises ConfigError where a score cannot be fitted to so many images."""
    if reference < 2 or not calibration:
        raise ConfigError(f"cannot calibrate with {reference} reference and {calibration} calibration images")


def _surprise(standard: Floats, levels: int, beside: Sequence[float]) -> Floats:
    """(4T + 2P, D + P). r, z and the residuals of the columns beside, each above and below zero; in std, weighted.

    All statistics of a level's energy have D/T for their expected part in the distance: r above zero counts a quarter
    of that times its square, r below zero and z an eighth. Too easy is strange too (digits, to a model of photographs),
    but less often so. Those of its pixels have an eighth together.
    """
    columns = standard.shape[1]
    dim = columns - len(beside)
    r = _residuals(standard, slice(0, levels), slice(levels, dim))
    z = np.eye(levels, columns)
    share = dim / max(levels, 1)  # D/T
    quarter, eighth = np.sqrt(share / 4), np.sqrt(share / 8)
    abd = _residuals(standard, slice(dim, columns), slice(0, dim)) * np.sqrt(share * np.array(beside))[:, None]
    return np.vstack([quarter * r, -eighth * r, eighth * z, -eighth * z, abd, -abd])


def _residuals(standard: Floats, wanted: slice, given: slice) -> Floats:
    """Columns `wanted` less their ridge regression on columns `given`, over the residual's std: (wanted, columns)."""
    x, y = standard[:, given], standard[:, wanted]
    gram = x.T @ x / len(x) + _RIDGE * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ y / len(x))
    rows = np.zeros((y.shape[1], standard.shape[1]))
    rows[:, wanted], rows[:, given] = np.eye(len(rows)), -weights.T
    rows /= np.maximum((y - x @ weights).std(0), 1e-9)[:, None]
    return rows


def calibrate_scorer(scorer: Scorer, calibration: Floats) -> Scorer:
    """The same score with the p-values of `calibration` rows (n, D)."""
    return replace(scorer, calibration_scores=np.sort(scorer.ood_score(calibration)))


def _oas_weight(covariance: Floats, count: int) -> float:
    dim = len(covariance)
    trace_of_square, square_of_trace = (covariance**2).sum(), np.trace(covariance) ** 2
    numerator = (1 - 2 / dim) * trace_of_square + square_of_trace
    denominator = (count + 1 - 2 / dim) * (trace_of_square - square_of_trace / dim)
    return float(min(1.0, numerator / denominator)) if denominator > 0 else 1.0
