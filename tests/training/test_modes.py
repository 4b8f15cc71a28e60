import numpy as np
import pytest
import torch

from ddaebm.training.data import GAUSSIAN_CENTRES, GAUSSIAN_STD
from ddaebm.training.modes import frechet_distance, grid_kl, kernel_distance, mode_report, precision_recall


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
    assert 1.5 < report["std_ratio"] < 2  # samples beyond 4 standard deviations are not counted


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


def gaussian(count: int, mean: float, std: float, seed: int, dim: int = 4) -> torch.Tensor:
    return mean + std * torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_frechet_distance_of_gaussians_is_the_formula_s() -> None:
    a, b = gaussian(50_000, 0.0, 1.0, 0), gaussian(50_000, 0.5, 2.0, 1)
    assert frechet_distance(a, b) == pytest.approx(4 * (0.5**2 + (2 - 1) ** 2), rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_the_unbiased_estimate_by_brute_force() -> None:
    a, b = gaussian(30, 0.0, 1.0, 0).double(), gaussian(30, 0.7, 1.0, 1).double()
    kernel = lambda x, y: (x @ y.T / 4 + 1) ** 3  # noqa: E731
    off = ~np.eye(30, dtype=bool)
    expected = kernel(a, a)[off].mean() + kernel(b, b)[off].mean() - 2 * kernel(a, b).mean()
    assert kernel_distance(a, b) == pytest.approx(expected.item(), rel=1e-6)  # every subset contains all points


def test_kernel_distance_does_not_depend_on_the_global_generator() -> None:
    a, b = gaussian(300, 0.0, 1.0, 0), gaussian(300, 0.1, 1.0, 1)
    first = kernel_distance(a, b, subsets=5, subset_size=50)
    torch.manual_seed(99)
    assert kernel_distance(a, b, subsets=5, subset_size=50) == first


def test_precision_falls_with_strange_samples_and_recall_with_missing_ones() -> None:
    two_modes = torch.cat([gaussian(400, -5.0, 0.5, 0), gaussian(400, 5.0, 0.5, 1)])
    one_mode, stranger = gaussian(800, 5.0, 0.5, 2), gaussian(800, 50.0, 0.5, 3)
    precision, recall = precision_recall(two_modes, one_mode)
    assert precision > 0.85
    assert recall == pytest.approx(0.5, abs=0.07)
    precision, recall = precision_recall(two_modes, torch.cat([two_modes, stranger]))
    assert (precision, recall) == (0.5, 1)


def test_precision_and_recall_by_brute_force() -> None:
    real, generated = gaussian(60, 0.0, 1.0, 0), gaussian(50, 0.8, 1.0, 1)

    def share(points: torch.Tensor, others: torch.Tensor) -> float:
        inside = 0
        for p in points:
            inside += any((p - o).norm() <= (others - o).norm(dim=1).sort().values[3] + 1e-6 for o in others)
        return inside / len(points)

    assert precision_recall(real, generated) == pytest.approx((share(generated, real), share(real, generated)))
