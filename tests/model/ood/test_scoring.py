"""Scores and p-values, against brute force, simulation and scikit-learn."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.covariance import OAS
from sklearn.linear_model import Ridge

from ddaebm.model.errors import ConfigError
from ddaebm.model.ood.conformal import false_alarm_interval, fdr_threshold
from ddaebm.model.ood.scoring import (
    Scorer,
    calibrate_scorer,
    fit_scorer,
    require_enough,
    statistics,
    weights_beside,
)

Floats = NDArray[np.float64]


def calibrated(scores: Floats) -> Scorer:
    return Scorer(np.zeros(1), np.eye(1), np.zeros((0, 1)), np.sort(scores), np.empty((0, 2)))


def fitted(reference: Floats, calibration: Floats, levels: int, beside: Sequence[float] = ()) -> Scorer:
    """Without spots."""
    scorer = fit_scorer(reference, levels, beside)
    return calibrate_scorer(scorer, scorer.whole(calibration))


def correlated(count: int, dim: int, seed: int) -> Floats:
    """Rows of a fixed distribution, with correlated columns of very different scales."""
    mix = np.random.default_rng(99).standard_normal((dim, dim)) * np.geomspace(1e-3, 1e3, dim)
    return np.random.default_rng(seed).standard_normal((count, dim)) @ mix + 5


def test_statistics_are_log_energies_then_features() -> None:
    energies = np.array([[1.0, np.e], [0.0, 4.0]], dtype=np.float32)
    features = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    rows = statistics(energies, features)
    assert rows.dtype == np.float64
    np.testing.assert_allclose(rows[0], [0, 1, 0, 1, 2, 3, 4, 5], atol=1e-7)
    assert np.isfinite(rows).all()


def test_neighbouring_energies_have_logarithms_of_their_own() -> None:
    energies = np.float32(357) + np.float32(2**-15) * np.arange(8, dtype=np.float32)[:, None]
    assert len(np.unique(energies)) == 8
    assert len(np.unique(statistics(energies, np.zeros((8, 1, 0), np.float32)))) == 8


@given(st.lists(st.integers(0, 8), min_size=1, max_size=30), st.lists(st.integers(-1, 9), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_p_value_is_its_formula_ties_included(calibration: list[int], scores: list[int]) -> None:
    scorer = calibrated(np.array(calibration, dtype=float))
    expected = [(1 + sum(c >= s for c in calibration)) / (len(calibration) + 1) for s in scores]
    np.testing.assert_allclose(scorer.p_value(np.array(scores, dtype=float)), expected)
    assert scorer.smallest_p == 1 / (len(calibration) + 1)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.33])
def test_false_alarms_stay_under_alpha_over_calibration_sets(alpha: float, tied: bool) -> None:
    rng, repeats, n = np.random.default_rng(0), 4000, 19
    draws = rng.standard_normal((repeats, n + 1))
    draws = np.round(draws) if tied else draws
    alarms = sum(calibrated(row[1:]).p_value(row[:1])[0] <= alpha + 1e-12 for row in draws)
    noise = 4 * np.sqrt(alpha * (1 - alpha) / repeats)
    assert alarms / repeats <= alpha + noise
    if not tied:  # the guarantee must not hold just because no alarm is ever raised
        assert alarms / repeats >= np.floor(alpha * (n + 1)) / (n + 1) - noise


@given(st.lists(st.integers(0, 8), min_size=1, max_size=30), st.integers(1, 99))
@settings(max_examples=100, deadline=None)
def test_the_threshold_is_where_p_values_pass_alpha(calibration: list[int], hundredths: int) -> None:
    scorer, alpha = calibrated(np.array(calibration, dtype=float)), hundredths / 100
    scores = np.arange(-1, 10, 0.5)
    np.testing.assert_array_equal(scores > scorer.threshold(alpha), scorer.p_value(scores) <= alpha)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(1, 19))
@settings(max_examples=200, deadline=None)
def test_fdr_threshold_is_benjamini_hochberg(ranks: list[int], twentieths: int) -> None:
    p_values, fdr = np.array(ranks) / 20, twentieths / 20
    expected = stats.false_discovery_control(p_values) <= fdr + 1e-12
    np.testing.assert_array_equal(p_values <= fdr_threshold(p_values, fdr), expected)
    distinct, counts = np.unique(p_values, return_counts=True)
    assert fdr_threshold(distinct, fdr, counts) == fdr_threshold(p_values, fdr)


def test_fdr_threshold_of_nothing_selects_nothing() -> None:
    assert fdr_threshold(np.empty(0), 0.1) == fdr_threshold(np.array([0.9]), 0.1) == 0
    assert fdr_threshold(np.array([0.1]), 0.1) == 0.1


def test_the_false_discovery_rate_is_kept_over_calibration_sets() -> None:
    """A tenth of each batch is slightly strange, so that some strange images are missed."""
    rng, fdr, shares, found = np.random.default_rng(0), 0.2, [], 0
    strange = np.arange(50) < 5
    for _ in range(2000):
        p_values = calibrated(rng.standard_normal(400)).p_value(rng.standard_normal(50) + 3 * strange)
        selected = p_values <= fdr_threshold(p_values, fdr)
        shares.append((selected & ~strange).sum() / max(selected.sum(), 1))
        found += (selected & strange).sum()
    expected = 0.9 * fdr  # exact for continuous p-values without ties; discrete ones give less
    assert np.mean(shares) == pytest.approx(expected, abs=0.03)
    assert 0.5 < found / (2000 * 5) < 0.99


@pytest.mark.parametrize(("alpha", "n"), [(0.05, 250), (0.01, 5000), (0.1, 99), (0.5, 20), (0.9, 30), (0.02, 50)])
@pytest.mark.parametrize("confidence", [0.99, 0.8])
def test_false_alarm_interval_is_the_beta_quantiles(alpha: float, n: int, confidence: float) -> None:
    j = int(np.floor(alpha * (n + 1)))
    tail = (1 - confidence) / 2
    expected = stats.beta.ppf([tail, 1 - tail], j, n + 1 - j)
    np.testing.assert_allclose(false_alarm_interval(alpha, n, confidence), expected, rtol=1e-6)


def test_realised_false_alarm_rates_lie_in_the_interval() -> None:
    rng, alpha, n = np.random.default_rng(1), 0.1, 99
    population = (np.arange(4000) + 0.5) / 4000
    rates = np.array([(calibrated(rng.random(n)).p_value(population) <= alpha).mean() for _ in range(1000)])
    low, high = false_alarm_interval(alpha, n, confidence=0.9)
    assert ((rates >= low) & (rates <= high)).mean() == pytest.approx(0.9, abs=4 * np.sqrt(0.9 * 0.1 / 1000))


@pytest.mark.parametrize("n", [48, 99, 250])
def test_interval_counts_the_p_values_that_fire(n: int) -> None:
    """Every alpha that is itself a p-value is tested, because alpha·(n + 1) may round to below a whole number."""
    p_values = calibrated(np.arange(n, dtype=float)).p_value(np.arange(n + 1) - 0.5)
    for alpha in p_values[p_values < 1].tolist():
        j = int((p_values <= alpha).sum())
        expected = stats.beta.ppf([0.005, 0.995], j, n + 1 - j)
        np.testing.assert_allclose(false_alarm_interval(alpha, n), expected, rtol=1e-6, err_msg=f"alpha {alpha}")


@pytest.mark.parametrize(("alpha", "n"), [(0.0, 100), (0.009, 100), (0.05, 18)])
def test_alpha_that_can_never_fire_is_refused(alpha: float, n: int) -> None:
    with pytest.raises(ConfigError, match="can never raise an alarm"):
        false_alarm_interval(alpha, n)


def test_score_is_the_mahalanobis_distance_under_oas_shrinkage() -> None:
    """scikit-learn drops the 2/D terms of the formula, which at D = 60 weigh less than the tolerance."""
    reference, calibration = correlated(150, 60, seed=0), correlated(80, 60, seed=1)
    scorer = fitted(reference, calibration, levels=0)
    centre, scale = reference.mean(0), reference.std(0)
    precision = OAS(assume_centered=True).fit((reference - centre) / scale).get_precision()
    rows = (calibration - centre) / scale
    np.testing.assert_allclose(scorer.whole(calibration), np.sum((rows @ precision) * rows, 1), rtol=5e-3)


def test_shrinkage_is_the_published_formula() -> None:
    """Chen et al. 2010, eq. 23, in small dimension, where its 2/D terms count."""
    reference = correlated(12, 4, seed=2)
    standard = (reference - reference.mean(0)) / reference.std(0)
    n, p, s = 12, 4, np.cov(standard.T, bias=True)
    tr_s2, tr2_s = np.trace(s @ s), np.trace(s) ** 2
    rho = min(1, ((1 - 2 / p) * tr_s2 + tr2_s) / ((n + 1 - 2 / p) * (tr_s2 - tr2_s / p)))
    assert 0.05 < rho < 1
    precision = np.linalg.inv((1 - rho) * s + rho * np.trace(s) / p * np.eye(p))
    expected = np.einsum("bi,ij,bj->b", standard, precision, standard)
    np.testing.assert_allclose(fitted(reference, reference, levels=0).whole(reference), expected, rtol=1e-8)


def with_energies(count: int, seed: int) -> Floats:
    """Two energies, linear in ten features plus noise of standard deviation 0.1 and 0.2, then the features."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((count, 10))
    mix = np.random.default_rng(99).standard_normal((10, 2))
    return np.hstack([features @ mix + rng.standard_normal((count, 2)) * [0.1, 0.2], features])


def test_surprise_is_the_energy_beyond_a_ridge_regression_on_the_features_in_its_own_std() -> None:
    reference, others = with_energies(3000, seed=10), with_energies(3000, seed=11)
    scorer = fitted(reference, others, levels=2)
    centre, scale = reference.mean(0), reference.std(0)
    standard = (reference - centre) / scale
    ridge = Ridge(alpha=0.01 * 3000, fit_intercept=False).fit(standard[:, 2:], standard[:, :2])
    residual = standard[:, :2] - ridge.predict(standard[:, 2:])
    r, z = residual / residual.std(0), standard[:, :2]
    expected = np.sqrt(12 / 2) * np.hstack([r / 2, -r / np.sqrt(8), z / np.sqrt(8), -z / np.sqrt(8)])
    np.testing.assert_allclose((reference - centre) @ scorer.surprise.T, expected, atol=1e-9)
    whole, alone = (fitted(reference, others, levels).whole(others) for levels in (2, 0))
    surprise = np.maximum((others - centre) @ scorer.surprise.T, 0)
    np.testing.assert_allclose(whole - alone, np.square(surprise).sum(1), atol=1e-9)


def test_an_energy_too_high_for_its_features_counts_and_one_too_low_half_as_much() -> None:
    reference = with_energies(3000, seed=12)
    with_it, without = (fitted(reference, reference, levels) for levels in (2, 0))
    shift = np.zeros(12)
    shift[0] = 1.0  # ten standard deviations of the residual, but small for the energy itself
    added = [with_it.whole(rows) - without.whole(rows) for rows in (reference + shift, reference - shift)]
    assert np.median(added[0]) > 100
    assert np.median(added[0]) / np.median(added[1]) == pytest.approx(2, rel=0.1)
    assert (with_it.p_value(with_it.whole(reference + shift)) <= 0.01).mean() > 0.99


def with_more_beside(count: int, seed: int) -> Floats:
    """Rows of `with_energies`, then eight statistics that are linear in them plus noise."""
    rows = with_energies(count, seed)
    mix = np.random.default_rng(98).standard_normal((12, 8))
    return np.hstack([rows, rows @ mix + 0.3 * np.random.default_rng(seed + 100).standard_normal((count, 8))])


def test_score_is_its_formula_with_the_pixels_and_the_complexity() -> None:
    reference, others = with_more_beside(3000, seed=13), with_more_beside(500, seed=14) * 1.2
    weights = weights_beside(2)
    assert weights == (1 / 16, 1 / 16, 1 / 16, 1 / 16, 1 / 4, 1 / 4, 1 / 16, 1 / 16)
    scorer = fitted(reference, others, 2, weights)
    without = fitted(reference[:, :12], others[:, :12], levels=2)
    centre, scale = reference.mean(0), reference.std(0)
    known, new = (reference - centre) / scale, (others - centre) / scale
    ridge = Ridge(alpha=0.01 * 3000, fit_intercept=False).fit(known[:, :12], known[:, 12:])
    std = (known[:, 12:] - ridge.predict(known[:, :12])).std(0)
    residuals = (new[:, 12:] - ridge.predict(new[:, :12])) / std
    expected = without.whole(others[:, :12]) + 12 / 2 * np.square(residuals) @ weights
    np.testing.assert_allclose(scorer.whole(others), expected, rtol=1e-9)


def test_fitted_scorer_separates_a_shift_and_is_calibrated_without_one() -> None:
    dim = 20
    scorer = fitted(correlated(1000, dim, seed=3), correlated(999, dim, seed=4), levels=4)
    inside, outside = correlated(1000, dim, seed=5), correlated(1000, dim, seed=6)
    outside += 2 * outside.std(0) * np.where(np.arange(dim) % 2, 1, -1)
    p_in, p_out = (scorer.p_value(scorer.whole(rows)) for rows in (inside, outside))
    assert stats.kstest(p_in, "uniform").pvalue > 1e-3
    assert (p_out <= 0.01).mean() > 0.95
    assert p_out.min() == scorer.smallest_p


def test_scores_ignore_the_units_of_each_statistic() -> None:
    units = np.geomspace(1e-6, 1e6, 8)
    reference, calibration = correlated(200, 8, seed=7), correlated(50, 8, seed=8)
    a, b = fitted(reference, calibration, 2), fitted(reference * units, calibration * units, 2)
    np.testing.assert_allclose(a.calibration_scores, b.calibration_scores, rtol=1e-6)


def test_calibration_scores_are_those_of_the_calibration_rows() -> None:
    calibration = correlated(50, 8, seed=8)
    scorer = fitted(correlated(200, 8, seed=7), calibration, levels=2)
    np.testing.assert_array_equal(scorer.calibration_scores, np.sort(scorer.whole(calibration)))


def test_a_constant_statistic_and_more_columns_than_rows_are_survived() -> None:
    reference = np.hstack([correlated(10, 20, seed=9), np.ones((10, 1))])
    assert np.isfinite(fitted(reference, reference, levels=2).calibration_scores).all()


@pytest.mark.parametrize(("m", "n"), [(1, 5), (0, 5), (5, 0)])
def test_too_few_rows_are_refused(m: int, n: int) -> None:
    with pytest.raises(ConfigError, match=f"{m} reference and {n} calibration"):
        require_enough(m, n)
