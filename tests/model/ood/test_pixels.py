"""Statistics of standardised pixels, against brute force."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ddaebm.model.ood.pixels import Pixels, fit_pixels, moments

Maps = NDArray[np.float32]


def energy_maps(count: int, seed: int) -> Maps:
    """Energy maps of three levels whose energies differ greatly in size."""
    sizes = np.array([1e-3, 1, 1e3])[:, None, None]
    return (np.random.default_rng(seed).gamma(4, 1, (count, 3, 6, 5)) * sizes).astype(np.float32)


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    maps = energy_maps(400, seed=0)
    return fit_pixels(maps)


def test_statistics_are_the_largest_of_standardised_log_energies_and_the_norm_of_standardised_energies(
    pixels: Pixels,
) -> None:
    known, maps = energy_maps(400, seed=0).astype(float), energy_maps(7, seed=1)
    found = pixels.statistics(maps)
    assert found.shape == (7, 6)
    assert found.dtype == np.float64
    for k in range(3):
        offset = 0.03 * known[:, k].mean()
        logs = np.log(known[:, k] + offset)
        log_std = np.maximum(logs.std(0), logs.std(0).mean() / 2)
        for i in range(7):
            z = (np.log(maps[i, k] + offset) - logs.mean(0)) / log_std
            assert found[i, k] == pytest.approx(np.log(z.max()), rel=1e-4, abs=1e-5)
            std_of_all = np.maximum(known[:, k].std(0), known[:, k].std(0).mean() / 2)
            z = (maps[i, k] - known[:, k].mean(0)) / std_of_all
            assert found[i, 3 + k] == pytest.approx(np.log(np.sqrt(np.mean(z**2))), rel=1e-4, abs=1e-5)


def test_one_bad_pixel_is_seen_by_its_level_alone(pixels: Pixels) -> None:
    maps = energy_maps(1, seed=2)
    hot = maps.copy()
    hot[0, 1, 3, 3] *= 100
    gain = (pixels.statistics(hot) - pixels.statistics(maps))[0]
    assert gain[1] > 0.5
    assert gain[4] > 0.1
    np.testing.assert_array_equal(gain[[0, 2, 3, 5]], 0)


def test_an_image_alone_is_as_in_a_batch(pixels: Pixels) -> None:
    maps = energy_maps(9, seed=3)
    whole = pixels.statistics(maps)
    for i in range(9):
        np.testing.assert_array_equal(pixels.statistics(maps[i : i + 1])[0], whole[i])


def test_moments_do_not_depend_on_the_batches() -> None:
    maps = energy_maps(50, seed=4)
    for parts in (1, 7):
        mean, std = moments(np.array_split(maps, parts))
        np.testing.assert_allclose(mean, maps.mean(0, dtype=float), rtol=1e-9)
        np.testing.assert_allclose(std, maps.std(0, dtype=float), rtol=1e-6)


def test_pixels_without_energy_or_that_never_vary_are_survived() -> None:
    constant = np.zeros((5, 3, 6, 5), np.float32)
    constant[:, 1] = 2
    found = fit_pixels(constant).statistics(constant)
    assert np.isfinite(found).all()
