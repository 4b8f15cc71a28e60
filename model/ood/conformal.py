"""Conformal p-values: selection at a false discovery rate, and the false-alarm rate of one calibration set.

Bates, Candès, Lei, Romano, Sesia 2023, *Testing for outliers with conformal p-values*.
"""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.errors import ConfigError


def fdr_threshold(p_values: NDArray[np.floating], fdr: float, counts: NDArray[np.integer] | None = None) -> float:
    """Select the images with p <= this: of those selected, an expected share of at most `fdr` is in distribution.

    Benjamini and Hochberg 1995, *Controlling the false discovery rate*: the largest p with p·m <= fdr·#{p_i <= p}, or
    0, which no p-value is. Conformal p-values share their calibration set, but depend on each other only in a way
    that the method allows (Bates et al. 2023).

    Args:
        p_values: (m,), or with `counts` (d,) distinct ones of which there are so many each.
    """
    distinct, where = np.unique(p_values, return_inverse=True)
    numbers = np.bincount(where, counts, len(distinct))
    passing = distinct * numbers.sum() <= fdr * np.cumsum(numbers) * (1 + 1e-12)  # equal but for rounding is equal
    return float(distinct[passing].max(initial=0.0))


@cache  # tens of milliseconds, and the service tells it with each description of a model
def false_alarm_interval(alpha: float, n: int, confidence: float = 0.99) -> tuple[float, float]:
    """Where the realised false-alarm rate of one calibration set of n lies with `confidence`.

    It is Beta(j, n + 1 - j) with j = floor(alpha·(n + 1)) (Bates et al. 2023, section 2.2).

    Raises:
        ConfigError: alpha is below the smallest p-value, so that no alarm is possible.
    """
    j = firing(alpha, n)
    if j < 1:
        raise ConfigError(
            f"alpha = {alpha} can never fire: the smallest p-value of {n} calibration images is {1 / (n + 1):.3g}"
        )
    tail = (1 - confidence) / 2
    return _beta_quantile(tail, j, n + 1 - j), _beta_quantile(1 - tail, j, n + 1 - j)


def firing(alpha: float, n: int) -> int:
    """How many of the p-values 1/(n + 1), …, n/(n + 1) are at most alpha: floor(alpha·(n + 1)), rounded as they are."""
    return int((np.arange(1, n + 1) / (n + 1) <= alpha).sum())


def _beta_quantile(q: float, a: int, b: int) -> float:
    """Quantile of Beta(a, b) for whole a, b: P(Beta(a, b) <= x) = P(Binomial(a + b - 1, x) >= a), bisected."""
    n = a + b - 1
    counts = np.arange(a, n + 1)
    log_choose = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in counts])
    low, high = 0.0, 1.0
    for _ in range(50):
        x = (low + high) / 2
        cdf = np.exp(log_choose + counts * math.log(x) + (n - counts) * math.log1p(-x)).sum()
        low, high = (x, high) if cdf < q else (low, x)
    return (low + high) / 2
