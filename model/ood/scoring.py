"""The OOD score of an image, and its conformal p-value.

The score joins two statistics (`model/ood/tails.py`): one of the hottest spot (`model/ood/spots.py`), and one of the
whole image. The latter is a sum of

- the squared Mahalanobis distance of the log energies and hidden features of all T levels,
- the residual of each log energy given the features. A high energy may mean a complex image (a striped shirt) or one of
  another kind, and the features show which.
- the residuals of two pixel statistics of each level (`model/ood/pixels.py`) and of four numbers for how complex the
  image is (`model/ood/complexity.py`), given log energies and features.

With D = T + T·F, and everything in standard deviations, it is

    S = distance² + D/T · { Σ_k [ ¼ max(0, r_k)² + ⅛ min(0, r_k)² + ⅛ z_k² + 1/16 a_k² + 1/16 b_k² ]
                            + ¼ d² + ¼ f² + 1/16 u² + 1/16 v² }

Here r are the residuals of the log energies, z the log energies themselves, a the residuals of the largest pixel, b
those of the pixels' root mean square, and d, f, u and v those of fine detail, equal neighbours and distinct runs along
rows and columns. docs/ood.md explains how this form was chosen.

The score is fitted on the reference part of the held-out data. The p-values come from the calibration part, which is
used for nothing else (Bates, Candès, Lei, Romano, Sesia 2023, *Testing for outliers with conformal p-values*).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.errors import ConfigError
from ddaebm.model.ood.complexity import WEIGHTS
from ddaebm.model.ood.conformal import firing
from ddaebm.model.ood.explain import log_energies
from ddaebm.model.ood.tails import fit_tails, tail_scores

Floats = NDArray[np.float64]

# Penalties of the ridge regressions that give the residuals, for features of variance 1. Some features are almost
# collinear. Of several penalties, each regression takes the one with the smallest leave-one-out error.
FORMS: dict[str, tuple[float, ...]] = {
    "small ridge": (0.01,),
    "cross-validated ridge": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
}
DEFAULT_FORM = "small ridge"
# Smallest std of a residual beside the distance, in logarithms. A number that is the same in all reference images, such
# as the share of equal neighbours in noise, would else make any image strange that has it otherwise.
_LEAST_RESIDUAL = 0.02


def statistics(energies: NDArray[np.floating], features: NDArray[np.floating]) -> Floats:
    """Log energies, then features, as one row per image: (B, T) and (B, T, F) -> (B, T + T·F)."""
    return np.concatenate([log_energies(energies), features.reshape(len(features), -1)], axis=1, dtype=np.float64)


def weights_beside(levels: int) -> tuple[float, ...]:
    """Weights of the residuals beside the distance in the score, (2T + 4,), for T = `levels`: a, b, d, f, u and v.

    They belong to the columns that `model.ood.levels.score_rows` puts after the first D.
    """
    return (*(1 / 16,) * (2 * levels), *WEIGHTS)


@dataclass(frozen=True)
class Scorer:
    """A fitted score, and the scores of the calibration images.

    S(row) = ‖whitening·(row - mean)[:D]‖² + ‖max(0, surprise·(row - mean))‖².

    Bundles of format 5 have no spots; their score is S itself. In formats 5 and 6, P = 2T + 1: of the numbers of
    complexity they have the fine detail alone.
    """

    mean: Floats  # (D + P,), P = 2T + 4
    whitening: Floats  # (D, D), the transposed Cholesky factor of the precision matrix
    surprise: Floats  # (4T + 2P, D + P), weighted rows for r, -r, z, -z, then the P residuals and their negatives
    calibration_scores: Floats  # (n,), ascending
    tails: Floats  # (2, 2), or (3, 2) with a dense score: `model.ood.tails.fit_tails`; (0, 2) without spots

    @property
    def has_spots(self) -> bool:
        return len(self.tails) > 0

    @property
    def beside(self) -> int:
        """P, the number of columns that do not enter the distance."""
        return len(self.mean) - len(self.whitening)

    def parts(self, rows: Floats, hottest: Floats) -> Floats:
        """The tail scores of the whole image and of its spots, hottest (B, K) -> (B, 1 + K); the largest is the reason.

        `model.ood.levels.spot_statistics` gives the statistics of spots.
        """
        return tail_scores(_logs(np.hstack([self.whole(rows)[:, None], hottest])), self.tails)

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


def fit_scorer(reference: Floats, levels: int, beside: Sequence[float] = (), form: str = DEFAULT_FORM) -> Scorer:
    """Fit the statistic of the whole image to `reference` rows (m, D + P): a score without spots or calibration.

    The covariance of the standardised rows is shrunk towards a multiple of the identity by oracle approximating
    shrinkage (Chen, Wiesel, Eldar, Hero 2010, *Shrinkage algorithms for MMSE covariance estimation*, eq. 23).

    Args:
        levels: T, the number of log energies, which are the first columns; 0 gives the distance alone.
        beside: Weights of the residuals of the last P columns, which do not enter the distance.
        form: One of `FORMS`.
    """
    mean, std = reference.mean(0), np.maximum(reference.std(0), 1e-9)
    standard = (reference - mean) / std
    dim = len(mean) - len(beside)
    covariance = standard[:, :dim].T @ standard[:, :dim] / len(standard)
    shrinkage = _oas_weight(covariance, len(standard))
    covariance = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / dim * np.eye(dim)
    # row @ precision @ row = ‖L.T @ row‖² with L the Cholesky factor of the precision matrix.
    whitening = np.linalg.cholesky(np.linalg.inv(covariance)).T / std[:dim]
    least = _LEAST_RESIDUAL / std[dim:]
    surprise = _surprise(standard, levels, beside, FORMS[form], least) / std
    return Scorer(mean, whitening, surprise, np.empty(0), np.empty((0, 2)))


def require_enough(reference: int, calibration: int) -> None:
    """Raise ConfigError if there are too few images to fit a score."""
    if reference < 2 or not calibration:
        raise ConfigError(
            f"cannot calibrate with {reference} reference and {calibration} calibration images; give more images"
        )


def _surprise(
    standard: Floats, levels: int, beside: Sequence[float], penalties: Sequence[float], least: Floats
) -> Floats:
    """The rows of `Scorer.surprise` for standardised rows, (4T + 2P, D + P).

    Each statistic appears twice, with both signs, because `Scorer.ood_score` uses only positive values. D/T is the
    expected contribution of one level to the distance. The weights are fractions of it: 1/4 for r above zero, 1/8 for r
    below zero and for z, and 1/8 for a and b together. Positive r has the larger weight, because an image that is
    unusually easy, such as a digit for a model of photographs, is less often out of distribution.
    """
    columns = standard.shape[1]
    dim = columns - len(beside)
    r = _residuals(standard, slice(0, levels), slice(levels, dim), penalties, np.full(levels, 1e-9))
    z = np.eye(levels, columns)
    share = dim / max(levels, 1)  # D/T
    quarter, eighth = np.sqrt(share / 4), np.sqrt(share / 8)
    others = _residuals(standard, slice(dim, columns), slice(0, dim), penalties, least)
    others *= np.sqrt(share * np.array(beside))[:, None]
    return np.vstack([quarter * r, -eighth * r, eighth * z, -eighth * z, others, -others])


def _residuals(standard: Floats, wanted: slice, given: slice, penalties: Sequence[float], least: Floats) -> Floats:
    """Rows that compute the residuals of columns `wanted` after ridge regression on columns `given`.

    With one penalty the unit is the standard deviation of the residuals of `standard`. With several it is that of the
    leave-one-out residuals e_i/(1 - h_i), h the diagonal of the hat matrix (Allen 1974, *The relationship between
    variable selection and data augmentation and a method for prediction*): the former are too small for a few images.

    Args:
        least: Smallest unit of each residual, (wanted,).

    Returns (wanted, columns).
    """
    x, y = standard[:, given], standard[:, wanted]
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    turned = x @ vectors
    moments = turned.T @ y / len(y)
    fits = []
    for penalty in penalties:
        shrunk = moments / (values + penalty)[:, None]
        residuals = y - turned @ shrunk
        if len(penalties) > 1:
            leverage = (turned**2 / (values + penalty)).sum(1) / len(x)
            residuals /= np.maximum(1 - leverage, 1e-3)[:, None]
        fits.append((vectors @ shrunk, residuals.std(0), (residuals**2).mean(0)))
    best = np.argmin([errors for _, _, errors in fits], 0)
    rows = np.zeros((y.shape[1], standard.shape[1]))
    rows[:, wanted] = np.eye(len(rows))
    for row, column, i in zip(rows, range(len(rows)), best, strict=True):
        weights, scales, _ = fits[i]
        row[given] = -weights[:, column]
        row /= max(scales[column], least[column])
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
