"""The drift martingale: fair bets on exactly uniform ranks, in any batches, and an alarm when the stream changes."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from ddaebm.model.ood.drift import Drift

Floats = NDArray[np.float64]
ALARM = math.log(100)
CALIBRATION = 500


def scores(rng: np.random.Generator, count: int) -> Floats:
    """Scores distributed like a squared Mahalanobis distance over 260 statistics."""
    return rng.chisquare(260, count)


def start(seed: int) -> tuple[Drift, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return Drift(scores(rng, CALIBRATION), seed), rng


def plain_martingale(ranks: Floats) -> float:
    """Brute force: the mixture over all bets and starting times, with each product computed directly."""
    count = len(ranks)

    def waiting(t: int) -> float:
        return 1 / math.log2(t + 2)

    capital = waiting(count)
    for eps in range(1, 10):
        for side in (ranks, 1 - ranks):
            gain = eps / 10 * side ** (eps / 10 - 1)
            capital += sum((waiting(t) - waiting(t + 1)) / 18 * math.prod(gain[t:]) for t in range(count))
    return capital


def test_the_martingale_is_the_mixture_written_out() -> None:
    drift, rng = start(0)
    ranks = drift.update(scores(rng, 40) * 1.1)
    assert drift.log_martingale == pytest.approx(math.log(plain_martingale(ranks)), rel=1e-9)


def test_it_begins_at_one_and_nothing_is_no_evidence() -> None:
    drift, _ = start(0)
    assert drift.log_martingale == 0
    assert drift.update(np.empty(0)).shape == (0,)
    assert drift.log_martingale == 0


@pytest.mark.parametrize("sizes", [[1] * 60, [7, 1, 52], [59, 1]])
def test_batches_do_not_matter(sizes: list[int]) -> None:
    whole, rng = start(1)
    parts, _ = start(1)
    stream = np.repeat(scores(rng, 30), 2)  # ties within a batch and across
    together = whole.update(stream)
    apart = [parts.update(part) for part in np.split(stream, np.cumsum(sizes)[:-1])]
    np.testing.assert_array_equal(np.concatenate(apart), together)
    assert parts.log_martingale == pytest.approx(whole.log_martingale, rel=1e-9)


def test_the_rank_is_that_among_the_calibration_and_all_before() -> None:
    drift = Drift(np.array([1.0, 2.0, 4.0, 8.0]), seed=0)
    ranks = drift.update(np.array([16.0, 3.0, 0.5, 2.0]))
    above_and_equal = np.array([[0, 1], [3, 1], [6, 1], [4, 2]])
    lowest = above_and_equal[:, 0] / [5, 6, 7, 8]
    assert (lowest < ranks).all()
    assert (ranks < lowest + above_and_equal[:, 1] / [5, 6, 7, 8]).all()


@pytest.mark.parametrize("value", [0.0, -3.0, 5e-324, 1e300, math.inf])
def test_any_score_has_a_rank(value: float) -> None:
    drift = Drift(np.array([value, 1.0]), seed=0)
    ranks = drift.update(np.full(50, value))
    assert ((ranks > 0) & (ranks < 1)).all()
    assert math.isfinite(drift.log_martingale)


def test_without_drift_ranks_are_uniform_and_independent() -> None:
    """The calibration set is so small that p-values from it alone would be far from uniform."""
    ranks = []
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        ranks.append(Drift(scores(rng, 5), seed).update(scores(rng, 20)))
    counts = np.histogram(np.concatenate(ranks), 20, (0, 1))[0]
    expected = len(ranks)  # 20 ranks each, 20 bins
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi-square with 19 degrees, 99.9 %
    columns = np.array(ranks) - 0.5
    assert abs(np.corrcoef(columns[:, 0], columns[:, 1])[0, 1]) < 0.08


def test_a_long_quiet_stream_raises_no_alarm() -> None:
    for seed in range(5):
        drift, rng = start(seed)
        highest = -math.inf
        for _ in range(40):
            drift.update(scores(rng, 250))
            highest = max(highest, drift.log_martingale)
        assert highest < ALARM


@pytest.mark.parametrize("quiet", [0, 20_000])
@pytest.mark.parametrize(
    ("share", "factor"), [(0.1, 3.0), (1.0, 1.1), (1.0, 0.9)], ids=["a tenth strange", "all stranger", "all too plain"]
)
def test_a_change_is_seen_within_a_thousand_images(quiet: int, share: float, factor: float) -> None:
    drift, rng = start(2)
    for _ in range(quiet // 250):
        drift.update(scores(rng, 250))
    assert drift.log_martingale < ALARM
    stream = scores(rng, 1000)
    drift.update(np.where(rng.random(1000) < share, factor * stream, stream))
    assert drift.log_martingale > ALARM


def test_the_highest_value_stays_when_ordinary_images_follow() -> None:
    drift, rng = start(3)
    assert drift.log_highest == 0
    drift.update(3.0 * scores(rng, 200))
    highest = drift.log_highest
    assert highest == drift.log_martingale > ALARM
    for _ in range(20):
        drift.update(scores(rng, 250))
    assert drift.log_martingale < highest == drift.log_highest
