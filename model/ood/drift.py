"""Drift of a stream of scores: a test martingale, which is large only where the stream has left the calibration.

Vovk, Nouretdinov, Gammerman 2003, *Testing exchangeability on-line*; Vovk 2021, *Testing randomness online*.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Scores are ranked on a fixed grid, one part in `_PARTS` fine. Were it made from the calibration scores, or were
# they a reference that stays as it is, p-values of a long stream would be a little off uniform, and a bettor who plays
# long enough would learn by how much: false alarms.
_PARTS = 128  # an octave
_LOWEST, _HIGHEST = -20, 44  # octaves
_BINS = _PARTS * (_HIGHEST - _LOWEST)

# The bets: eps·p^(eps - 1), which integrates to 1, on p and on 1 - p. Small eps for few extreme scores, eps near 1
# for a slight shift of all.
_EXPONENTS = np.arange(0.1, 1.0, 0.1)


class Drift:
    """A martingale from 1: over an endless stream like the calibration set it reaches c with probability <= 1/c.

    Each score's rank among the calibration scores *and all scores before it*, ties broken at random, is exactly uniform
    and independent of the others while all of them are exchangeable. On these ranks capital is bet that they are
    small (strange images), or large (too ordinary ones). It starts betting at every time t with a share of
    1/log2(t + 1) - 1/log2(t + 2), so that a change after a million quiet images costs a few nats, not all that was
    lost until then. Memory is fixed, time a score as well.

    Martingales of several replicas are combined by their average, which is one too; their maximum is not.
    """

    def __init__(self, calibration_scores: Floats, seed: int | Sequence[int] | None = None) -> None:
        self._counts = np.bincount(_bins(calibration_scores), minlength=_BINS)
        self._size = len(calibration_scores)  # all that is counted
        self._seen = 0  # of it, scores of the stream
        self._log_bets = np.full(2 * len(_EXPONENTS), -np.inf)  # capital at stake, by bet
        self._rng = np.random.default_rng(seed)

    def update(self, scores: Floats) -> Floats:
        """Take in `scores` (B,), in the order of the stream; their ranks (B,), uniform in (0, 1) without drift."""
        if not len(scores):
            return np.empty(0)
        ranks = self._rank(_bins(scores))
        logs = np.log(np.stack([ranks, 1 - ranks], 1))  # (B, 2)
        gains = (np.log(_EXPONENTS) + (_EXPONENTS - 1) * logs[:, :, None]).reshape(len(scores), -1)  # (B, bets), log
        times = self._seen + np.arange(1, len(scores) + 1)
        starting = np.log(_waiting(times - 1) - _waiting(times)) - np.log(gains.shape[1])
        # Capital that starts at t wins all from t on: divided by the product of all gains so far, a bet is a sum.
        total = np.cumsum(gains, 0)
        joined = np.logaddexp.reduce(starting[:, None] - (total - gains), 0)
        self._log_bets = total[-1] + np.logaddexp(self._log_bets, joined)
        self._seen += len(scores)
        self._size += len(scores)
        return ranks

    @property
    def log_martingale(self) -> float:
        """Natural logarithm; 4.6 is a capital of 100."""
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
    """Share of the capital that has not begun to bet after `time` scores."""
    return 1 / np.log2(np.asarray(time) + 2.0)


def _bins(scores: Floats) -> NDArray[np.int64]:
    octaves = np.log2(np.maximum(scores, 2.0**_LOWEST))
    bins: NDArray[np.int64] = np.minimum((octaves - _LOWEST) * _PARTS, _BINS - 1).astype(np.int64)
    return bins
