"""The OOD score of an image, and its conformal p-value.

The score joins two statistics (`model/ood/tails.py`): one of the hottest spot (`model/ood/spots.py`), and one of the
whole image. The latter is a sum of

- the squared Mahalanobis distance of the log energies and hidden features of all T levels,
- the residual of each log energy given the features. A high energy may mean a complex image (a striped shirt) or one of
  another kind, and the features show which.
- the residuals of two pixel statistics of each level (`model/ood/pixels.py`) and of the image's fine detail, given log
  energies and features.

With D = T + T·F, and everything in standard deviations, it is

    S = distance² + D/T · { Σ_k [ ¼ max(0, r_k)² + ⅛ min(0, r_k)² + ⅛ z_k² + 1/16 a_k² + 1/16 b_k² ] + ¼ d² }

Here r are the residuals of the log energies, z the log energies themselves, a the residuals of the largest pixel, b
those of the pixels' root mean square, and d that of the fine detail. docs/ood.md explains how this form was chosen.

The score is fitted on the reference part of the held-out data. The p-values come from the calibration part, which is
used for nothing else (Bates, Candès, Lei, Romano, Sesia 2023, *Testing for outliers with conformal p-values*).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.errors import ConfigError
from ddaebm.model.ood.conformal import firing
from ddaebm.model.ood.explain import log_energies
from ddaebm.model.ood.tails import fit_tails, tail_scores

Floats = NDArray[np.float64]

_RIDGE = 0.01  # ridge penalty, for features of variance 1; some features are almost collinear
_LEAST_DETAIL = 0.1  # in grey levels; keeps the logarithm of a constant image finite


def statistics(energies: NDArray[np.floating], features: NDArray[np.floating]) -> Floats:
    """Log energies, then features, as one row per image: (B, T) and (B, T, F) -> (B, T + T·F)."""
    return np.concatenate([log_energies(energies), features.reshape(len(features), -1)], axis=1, dtype=np.float64)


def fine_detail(images: NDArray[np.uint8]) -> Floats:
    """Logarithm of the mean absolute diagonal detail in grey levels: images (B, H, W, C) -> (B, 1).

    The diagonal detail is x_ij - x_(i+1)j - x_i(j+1) + x_(i+1)(j+1), the finest diagonal band of an undecimated Haar
    transform. It is 0 for edges along the axes and for slow changes of brightness, large for noise and small for blur.
    """
    rows = np.diff(images.astype(np.int16), axis=1)
    detail = np.abs(np.diff(rows, axis=2)).mean((1, 2, 3), dtype=np.float64)
    logs: Floats = np.log(detail + _LEAST_DETAIL)[:, None]
    return logs


def weights_beside(levels: int) -> tuple[float, ...]:
    """Weights of the residuals a, b and d in the score, (2T + 1,), for T = `levels`.

    They belong to the columns that `model.ood.levels.score_rows` puts after the first D.
    """
    return (*(1 / 16,) * (2 * levels), 1 / 4)


@dataclass(frozen=True)
class Scorer:
    """A fitted score, and the scores of the calibration images.

    S(row) = ‖whitening·(row - mean)[:D]‖² + ‖max(0, surprise·(row - mean))‖².

    Bundles of format 5 have no spots; their score is S itself.
    """

    mean: Floats  # (D + P,), P = 2T + 1
    whitening: Floats  # (D, D), the transposed Cholesky factor of the precision matrix
    surprise: Floats  # (4T + 2P, D + P), weighted rows for r, -r, z, -z, then (a, b, d) and (-a, -b, -d)
    calibration_scores: Floats  # (n,), ascending
    tails: Floats  # (2, 2), `model.ood.tails.fit_tails`; (0, 2) without spots

    @property
    def has_spots(self) -> bool:
        return len(self.tails) > 0

    def parts(self, rows: Floats, hottest: Floats) -> Floats:
        """The tail scores of the whole image and of its hottest spot, (B, 2); the larger one is the reason."""
        return tail_scores(_logs(np.stack([self.whole(rows), hottest], 1)), self.tails)

    def whole(self, rows: Floats) -> Floats:
        """S of the whole image, (B,), without a unit.

        Args:
            rows: Output of `model.ood.levels.score_rows`, (B, D + P).
        """
        centred = rows - self.mean
        # vecdot has two advantages over a matrix product. Scores do not depend on the batch, not even in the last bit.
        # And BLAS starts no threads, which would spin on the cores that inference needs.
        distance = np.square(np.vecdot(centred[:, None, : len(self.whitening)], self.whitening)).sum(1)
        scores: Floats = distance + np.square(np.maximum(np.vecdot(centred[:, None], self.surprise), 0)).sum(1)
        return scores

    def p_value(self, scores: Floats) -> Floats:
        """Conformal p-values p = (1 + #{S_i >= S}) / (n + 1) of scores (B,).

        P(p <= alpha) <= alpha for an image from the distribution of the calibration images. Ties increase p.
        """
        n = len(self.calibration_scores)
        below = np.searchsorted(self.calibration_scores, scores, side="left")
        p: Floats = (1 + n - below) / (n + 1)
        return p

    def threshold(self, alpha: float) -> float:
        """The score above which p <= alpha; infinite if alpha is below the smallest p-value."""
        n = len(self.calibration_scores)
        j = firing(alpha, n)
        return float(self.calibration_scores[n - j]) if j else math.inf

    @property
    def smallest_p(self) -> float:
        """The smallest possible p-value, 1/(n + 1). A smaller alpha can never raise an alarm."""
        return 1 / (len(self.calibration_scores) + 1)

    @property
    def default_alpha(self) -> float:
        """The default alpha: 0.05, or the smallest p-value if that is larger."""
        return max(0.05, self.smallest_p)


def fit_scorer(reference: Floats, levels: int, beside: Sequence[float] = ()) -> Scorer:
    """Fit the statistic of the whole image to `reference` rows (m, D + P): a score without spots or calibration.

    The covariance of the standardised rows is shrunk towards a multiple of the identity by oracle approximating
    shrinkage (Chen, Wiesel, Eldar, Hero 2010, *Shrinkage algorithms for MMSE covariance estimation*, eq. 23).

    Args:
        levels: T, the number of log energies, which are the first columns; 0 gives the distance alone.
        beside: Weights of the residuals of the last P columns, which do not enter the distance.
    """
    mean, std = reference.mean(0), np.maximum(reference.std(0), 1e-9)
    standard = (reference - mean) / std
    dim = len(mean) - len(beside)
    covariance = standard[:, :dim].T @ standard[:, :dim] / len(standard)
    shrinkage = _oas_weight(covariance, len(standard))
    covariance = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / dim * np.eye(dim)
    # row @ precision @ row = ‖L.T @ row‖² with L the Cholesky factor of the precision matrix.
    whitening = np.linalg.cholesky(np.linalg.inv(covariance)).T / std[:dim]
    surprise = _surprise(standard, levels, beside) / std
    return Scorer(mean, whitening, surprise, np.empty(0), np.empty((0, 2)))


def require_enough(reference: int, calibration: int) -> None:
    """Raise ConfigError if there are too few images to fit a score."""
    if reference < 2 or not calibration:
        raise ConfigError(
            f"cannot calibrate with {reference} reference and {calibration} calibration images; give more images"
        )


def _surprise(standard: Floats, levels: int, beside: Sequence[float]) -> Floats:
    """The rows of `Scorer.surprise` for standardised rows, (4T + 2P, D + P).

    Each statistic appears twice, with both signs, because `Scorer.ood_score` uses only positive values. D/T is the
    expected contribution of one level to the distance. The weights are fractions of it: 1/4 for r above zero, 1/8 for r
    below zero and for z, and 1/8 for a and b together. Positive r has the larger weight, because an image that is
    unusually easy, such as a digit for a model of photographs, is less often out of distribution.
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
    """Rows that compute the residuals of columns `wanted` after ridge regression on columns `given`.

    Returns (wanted, columns); the residuals have unit standard deviation.
    """
    x, y = standard[:, given], standard[:, wanted]
    gram = x.T @ x / len(x) + _RIDGE * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ y / len(x))
    rows = np.zeros((y.shape[1], standard.shape[1]))
    rows[:, wanted], rows[:, given] = np.eye(len(rows)), -weights.T
    rows /= np.maximum((y - x @ weights).std(0), 1e-9)[:, None]
    return rows


def calibrate_scorer(scorer: Scorer, scores: Floats) -> Scorer:
    """Return the same score with p-values from the `scores` of calibration images, (n,)."""
    return replace(scorer, calibration_scores=np.sort(scores))


def with_spots(scorer: Scorer, whole: Floats, hottest: Floats, calibration: int) -> Scorer:
    """Return the score with a spot's part. Args as `model.ood.tails.fit_tails`, without the logarithms."""
    return replace(scorer, tails=fit_tails(_logs(whole), _logs(hottest), calibration))


def _logs(values: Floats) -> Floats:
    logs: Floats = np.log(np.maximum(values, 1e-12))
    return logs


def _oas_weight(covariance: Floats, count: int) -> float:
    """Weight of oracle approximating shrinkage for a covariance (D, D) estimated from `count` rows."""
    dim = len(covariance)
    trace_of_square, square_of_trace = (covariance**2).sum(), np.trace(covariance) ** 2
    numerator = (1 - 2 / dim) * trace_of_square + square_of_trace
    denominator = (count + 1 - 2 / dim) * (trace_of_square - square_of_trace / dim)
    return float(min(1.0, numerator / denominator)) if denominator > 0 else 1.0
