"""Conformal p-values: selection at a false discovery rate, and the false-alarm rate of a calibration set.

Source: Bates, Candès, Lei, Romano, Sesia 2023, *Testing for outliers with conformal p-values*.
"""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.errors import ConfigError


def fdr_threshold(p_values: NDArray[np.floating], fdr: float, counts: NDArray[np.integer] | None = None) -> float:
    """Compute the p-value up to which images are selected as OOD.

    The expected share of in-distribution images among the selected ones is at most `fdr`. The threshold is the largest
    p with p·m <= fdr·#{p_i <= p}, or 0, which selects nothing (Benjamini and Hochberg 1995, *Controlling the false
    discovery rate*). Conformal p-values that share a calibration set are dependent, but the procedure stays valid
    (Bates et al. 2023).

    Args:
        p_values: All p-values, (m,); or with `counts` the distinct values, (d,).
        counts: How often each of the distinct values occurs, (d,).
    """
    distinct, where = np.unique(p_values, return_inverse=True)
    numbers = np.bincount(where, counts, len(distinct))
    passing = distinct * numbers.sum() <= fdr * np.cumsum(numbers) * (1 + 1e-12)  # tolerates rounding errors
    return float(distinct[passing].max(initial=0.0))


@cache  # takes tens of milliseconds, and the service includes it in every model description
def false_alarm_interval(alpha: float, n: int, confidence: float = 0.99) -> tuple[float, float]:
    """Central interval that contains the actual false-alarm rate at `alpha` with probability `confidence`.

    Given a calibration set of n images, this rate has the distribution Beta(j, n + 1 - j) with
    j = floor(alpha·(n + 1)) (Bates et al. 2023, section 2.2).

    Raises:
        ConfigError: alpha is below the smallest p-value, so that no alarm is possible.
    """
    j = firing(alpha, n)
    if j < 1:
        raise ConfigError(
            f"alpha = {alpha} can never raise an alarm: the smallest p-value with {n} calibration images is"
            f" {1 / (n + 1):.3g}; give a larger alpha"
        )
    tail = (1 - confidence) / 2
    return _beta_quantile(tail, j, n + 1 - j), _beta_quantile(1 - tail, j, n + 1 - j)


def firing(alpha: float, n: int) -> int:
    """Number of the p-values 1/(n + 1), …, n/(n + 1) that are at most alpha, which is floor(alpha·(n + 1)).

    Counting avoids rounding errors, because it compares the floating-point values of the p-values themselves.
    """
    return int((np.arange(1, n + 1) / (n + 1) <= alpha).sum())


def _beta_quantile(q: float, a: int, b: int) -> float:
    """Quantile of Beta(a, b) for integers a and b.

    Found by bisection with P(Beta(a, b) <= x) = P(Binomial(a + b - 1, x) >= a).
    """
    n = a + b - 1
    counts = np.arange(a, n + 1)
    log_choose = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in counts])
    low, high = 0.0, 1.0
    for _ in range(50):
        x = (low + high) / 2
        cdf = np.exp(log_choose + counts * math.log(x) + (n - counts) * math.log1p(-x)).sum()
        low, high = (x, high) if cdf < q else (low, x)
    return (low + high) / 2
