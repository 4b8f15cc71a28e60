import numpy as np
import pytest

from training.data import GAUSSIAN_CENTRES, GAUSSIAN_STD
from training.metrics import grid_kl, mode_report


def draws(count: int, std: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    return GAUSSIAN_CENTRES[rng.integers(25, size=count)] + std * rng.standard_normal((count, 2))


def test_the_mixture_itself_is_perfect() -> None:
    report = mode_report(draws(100_000, GAUSSIAN_STD), GAUSSIAN_CENTRES, GAUSSIAN_STD)
    assert report["modes"] == 25
    assert report["within_4_sigma"] == pytest.approx(1 - np.exp(-8), abs=2e-4)
    assert report["std_ratio"] == pytest.approx(1, abs=0.01)
    assert 0.9 < report["smallest_mode"] < 1 < report["largest_mode"] < 1.1


def test_wide_modes_are_seen_in_both_numbers() -> None:
    report = mode_report(draws(100_000, 2 * GAUSSIAN_STD), GAUSSIAN_CENTRES, GAUSSIAN_STD)
    assert report["within_4_sigma"] == pytest.approx(1 - np.exp(-2), abs=0.01)
    assert 1.5 < report["std_ratio"] < 2  # cut at 4 standard deviations


def test_a_collapsed_sampler_and_one_far_from_all_data() -> None:
    one = mode_report(np.repeat(GAUSSIAN_CENTRES[:1], 50, 0), GAUSSIAN_CENTRES, GAUSSIAN_STD)
    assert (one["modes"], one["within_4_sigma"], one["std_ratio"]) == (1, 1.0, 0.0)
    assert (one["largest_mode"], one["smallest_mode"]) == (25.0, 0.0)
    none = mode_report(np.full((50, 2), 99.0), GAUSSIAN_CENTRES, GAUSSIAN_STD)
    assert list(none.values()) == [0, 0.0, 0.0, 0.0, 0.0]


def test_grid_kl_is_that_of_the_normalised_densities() -> None:
    x = np.linspace(-8, 8, 2_001)
    shifted = grid_kl(-0.5 * x**2, -0.5 * (x - 1) ** 2 + 37)
    assert shifted == pytest.approx(0.5, rel=1e-6)
    assert grid_kl(-0.5 * x**2, -0.5 * x**2 - 5) == pytest.approx(0, abs=1e-12)
