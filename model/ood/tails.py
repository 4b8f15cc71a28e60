"""Join two statistics of an image into one score: one of the whole image, and one of its hottest spot.

Each statistic s is brought to the scale of minus the logarithm of its tail probability. Above the value u that a share
q of ordinary images exceed, ln s is taken as exponential (Hill 1975, *A simple general approach to inference about the
tail of a distribution*), and the same straight line is used below u:

    t(s) = -ln q + (ln s - ln u)/xi

The joined score is ln(1 + ‖(e^t_whole, w·e^t_spot)‖), with the 3-norm. It is smooth, above 0, and acts like the larger
of the two. It has no ranks, so that it goes on growing beyond all images that it was fitted on.

The weight w of the spot is small, because a spot says little about most strange images: with w = ⅛ it causes a ninth of
the false alarms. But an image whose spot is hotter than all others must not pass. The hottest spot of n calibration
images has e^t > n/3 nearly always, and then about 3/w of them have a higher joined score. So w is at least 120/n, which
gives such an image a p-value near 1/40.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_SHARE, _FEWEST = 0.05, 20  # q, and the smallest number of images in the tail that is fitted
_LEAST = 1e-3  # smallest xi
_NORM = 3.0


def fit_tail(logs: Floats) -> tuple[float, float]:
    """Fit a line t = (ln s - offset)/scale to ln s of ordinary images, (N,): (offset, scale)."""
    descending = np.sort(logs)[::-1]
    count = max(1, min(max(_FEWEST, round(_SHARE * len(logs))), len(logs) // 3))
    threshold = descending[min(count, len(logs) - 1)]
    scale = max(float((descending[:count] - threshold).mean()), _LEAST)
    return float(threshold + np.log(count / len(logs)) * scale), scale


def fit_tails(whole: Floats, hottest: Floats, calibration: int) -> Floats:
    """Lines for all statistics, (1 + K, 2), rows whole and spots; ln w is a part of the offset of one spot's.

    Args:
        whole: ln s of images that the statistics were not fitted to, (N,).
        hottest: The same of statistics of spots, (N,), or (N, K) of a dense score, which have no weight.
        calibration: Number of calibration images, n.
    """
    tails = np.array([fit_tail(logs) for logs in (whole, *hottest.reshape(len(whole), -1).T)])
    if len(tails) > 2:
        return tails
    tails[1, 0] -= tails[1, 1] * np.log(min(1.0, max(1 / 8, 120 / calibration)))
    return tails


def tail_scores(logs: Floats, tails: Floats) -> Floats:
    """t_whole and t_spot + ln w: ln s (B, 1 + K) and `tails` -> (B, 1 + K)."""
    scaled: Floats = (logs - tails[:, 0]) / tails[:, 1]
    return scaled


def join(scores: Floats) -> Floats:
    """The joined score: `tail_scores` (B, 1 + K) -> (B,)."""
    norm = np.logaddexp.reduce(_NORM * scores, axis=1) / _NORM
    joined: Floats = np.logaddexp(0, norm)
    return joined
