"""Detect drift in a stream of scores with a test martingale, which grows if the scores leave the calibration's law.

Sources: Vovk, Nouretdinov, Gammerman 2003, *Testing exchangeability on-line*; Vovk 2021, *Testing randomness online*.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Scores are ranked on a fixed logarithmic grid. A grid made from the calibration scores, or ranks among these scores
# alone, would give p-values that are slightly non-uniform. In a long stream the bets would exploit this and raise false
# alarms.
_PARTS = 128  # grid cells per octave
_LOWEST, _HIGHEST = -20, 44  # range of the grid, as powers of 2
_BINS = _PARTS * (_HIGHEST - _LOWEST)

# The bets are eps·p^(eps - 1), which integrates to 1, on p and on 1 - p. Small eps detects a few extreme scores, eps
# near 1 a slight shift of all scores.
_EXPONENTS = np.arange(0.1, 1.0, 0.1)


class Drift:
    """Test martingale with initial value 1. Without drift it ever reaches c with probability at most 1/c.

    The rank of a score is taken among the calibration scores and all earlier scores of the stream, with ties broken at
    random. As long as all these scores are exchangeable, the ranks are uniform and independent. The martingale is the
    capital of a gambler who bets that ranks are small (strange images) or large (unusually ordinary images).

    A share 1/log2(t + 1) - 1/log2(t + 2) of the capital starts to bet at time t. A change after a million images
    without drift therefore costs a few nats, rather than everything that earlier bets have lost. Memory, and time per
    score, are constant.

    To combine the martingales of k replicas, take their average, which is a martingale again; or their maximum
    divided by k, which also holds for the highest values so far.

    Args:
        calibration_scores: OOD scores of the calibration images, (n,).
        seed: Seed for breaking ties.
    """

    def __init__(self, calibration_scores: Floats, seed: int | Sequence[int] | None = None) -> None:
        self._counts = np.bincount(_bins(calibration_scores), minlength=_BINS)
        self._size = len(calibration_scores)  # number of counted scores: calibration and stream
        self._seen = 0  # number of scores of the stream
        self._log_bets = np.full(2 * len(_EXPONENTS), -np.inf)  # log capital at stake, by bet
        self._rng = np.random.default_rng(seed)
        self.log_highest = 0.0  # largest `log_martingale` after any update so far; the promise of 1/c holds for it too

    def update(self, scores: Floats) -> Floats:
        """Add `scores` (B,) in the order of the stream. Returns their ranks (B,), uniform in (0, 1) without drift."""
        if not len(scores):
            return np.empty(0)
        ranks = self._rank(_bins(scores))
        logs = np.log(np.stack([ranks, 1 - ranks], 1))  # (B, 2)
        gains = (np.log(_EXPONENTS) + (_EXPONENTS - 1) * logs[:, :, None]).reshape(
            len(scores), -1
        )  # (B, bets), log gain
        times = self._seen + np.arange(1, len(scores) + 1)
        starting = np.log(_waiting(times - 1) - _waiting(times)) - np.log(gains.shape[1])
        # Capital that starts at t earns all gains from t on, which is total[-1] - (total - gains)[t] in logarithms.
        total = np.cumsum(gains, 0)
        joined = np.logaddexp.reduce(starting[:, None] - (total - gains), 0)
        self._log_bets = total[-1] + np.logaddexp(self._log_bets, joined)
        self._seen += len(scores)
        self._size += len(scores)
        self.log_highest = max(self.log_highest, self.log_martingale)
        return ranks

    @property
    def log_martingale(self) -> float:
        """Natural logarithm of the martingale; 4.6 means a capital of 100."""
        return float(np.logaddexp(np.log(_waiting(self._seen)), np.logaddexp.reduce(self._log_bets)))

    def _rank(self, bins: NDArray[np.int64]) -> Floats:
        before = np.tri(len(bins), k=-1, dtype=bool)  # [i, j]: j came before i
        above = self._size - np.cumsum(self._counts)[bins] + ((bins[:, None] < bins) & before).sum(1)
        equal = self._counts[bins] + ((bins[:, None] == bins) & before).sum(1)
        ranks: Floats = above + self._rng.random(len(bins)) * (equal + 1)
        ranks /= self._size + np.arange(1, len(bins) + 1)
        np.add.at(self._counts, bins, 1)
        return np.clip(ranks, 2.0**-53, 1 - 2.0**-53)


def _waiting(time: int | NDArray[np.int64]) -> Floats:
    """Share of the capital that has not started to bet after `time` scores."""
    return 1 / np.log2(np.asarray(time) + 2.0)


def _bins(scores: Floats) -> NDArray[np.int64]:
    octaves = np.log2(np.maximum(scores, 2.0**_LOWEST))
    bins: NDArray[np.int64] = np.minimum((octaves - _LOWEST) * _PARTS, _BINS - 1).astype(np.int64)
    return bins
