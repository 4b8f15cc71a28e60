"""Tails: their scale, and that the joined score hides neither statistic."""

import numpy as np
import pytest

from ddaebm.model.ood.tails import fit_tail, fit_tails, join, tail_scores


def test_a_pareto_tail_is_found() -> None:
    """P(S > s) = (s/3)^(-1/0.5) for s > 3."""
    logs = np.log(3) + np.random.default_rng(0).exponential(0.5, 200_000)
    offset, scale = fit_tail(logs)
    assert scale == pytest.approx(0.5, rel=0.02)
    assert offset == pytest.approx(np.log(3), abs=0.02)


@pytest.mark.parametrize("p", [0.2, 0.05, 0.002])
def test_t_is_minus_the_logarithm_of_the_tail_probability(p: float) -> None:
    logs = np.random.default_rng(1).exponential(2.0, 100_000) - 7
    tails = fit_tails(logs, logs, calibration=120)
    found = tail_scores(np.full((1, 2), np.quantile(logs, 1 - p)), tails)
    np.testing.assert_allclose(found, -np.log(p), atol=0.1)


@pytest.mark.parametrize(("calibration", "weight"), [(10, 1.0), (120, 1.0), (300, 0.4), (960, 1 / 8), (5000, 1 / 8)])
def test_the_weight_of_the_spot(calibration: int, weight: float) -> None:
    logs = np.random.default_rng(2).normal(size=1000)
    whole, spot = tail_scores(np.ones((1, 2)), fit_tails(logs, logs, calibration))[0]
    assert spot - whole == pytest.approx(np.log(weight))


def test_the_joined_score_is_smooth_positive_and_unbounded() -> None:
    t = np.array([[-50.0, -50.0], [0, 0], [8, -3], [-3, 8], [1000, 0], [0, 1000]])
    expected = np.log1p(np.cbrt(np.exp(3 * t[:4]).sum(1)))
    np.testing.assert_allclose(join(t)[:4], expected)
    np.testing.assert_allclose(join(t)[4:], 1000)
    assert (join(t) > 0).all()
    rising = join(np.stack([np.linspace(-5, 60, 1000), np.full(1000, 2.0)], 1))
    assert (np.diff(rising) > 0).all()


@pytest.mark.parametrize("count", [2, 3, 10])
def test_few_and_equal_values_are_survived(count: int) -> None:
    for logs in (np.zeros(count), np.arange(count, dtype=float)):
        assert np.isfinite(tail_scores(np.ones((1, 2)), fit_tails(logs, logs, 1))).all()


@pytest.mark.parametrize(("n", "unlucky"), [(100, 30), (300, 12), (2000, 1)])
def test_the_hottest_spot_of_all_does_not_pass_at_five_percent(n: int, unlucky: int) -> None:
    """The image is ordinary as a whole. It may pass by bad luck, if few images calibrate."""
    rng, passed = np.random.default_rng(n), 0
    for _ in range(200):
        fitted, calibration = rng.normal(size=(2, n, 2))
        tails = fit_tails(fitted[:, 0], 0.3 * fitted[:, 1], n)
        scores = join(tail_scores(calibration * [1, 0.3], tails))
        hottest = np.array([[0.0, 0.3 * calibration[:, 1].max() + 1e-9]])
        p = (1 + (scores >= join(tail_scores(hottest, tails))).sum()) / (n + 1)
        passed += p > 0.05
    assert passed <= unlucky
