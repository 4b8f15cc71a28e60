"""Explanations: energy quantiles by level, the heatmap, and its overlay."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ddaebm.model.images.encode import overlay
from ddaebm.model.ood.explain import Explainer, fit_explainer
from ddaebm.model.ood.pixels import fit_pixels


def flat(shape: tuple[int, int, int], std: NDArray[np.float64] | float = 1.0) -> Explainer:
    """Every pixel has mean 10 and the std given."""
    unlike = np.stack([10 - np.broadcast_to(std, shape), 10 + np.broadcast_to(std, shape)])
    return fit_explainer(np.ones((1, shape[0])), fit_pixels(unlike), None)


def heat(explainer: Explainer, energy_map: NDArray[np.float64]) -> NDArray[np.float64]:
    """Make the heatmap that a bundle of format 5 gives for one image."""
    return explainer.heatmaps(np.zeros((1, *energy_map.shape[1:], 1), np.uint8), energy_map[None])[0]


def test_quantiles_count_the_calibration_images_of_lower_energy() -> None:
    known = np.array([[1.0, 40.0], [2.0, 30.0], [4.0, 20.0], [4.0, 10.0]])
    explainer = fit_explainer(known, flat((2, 3, 3)).pixels, None)
    energies = np.array([[0.5, 50.0], [2.5, 10.0], [4.0, 31.0], [9.0, 0.0]], np.float32)
    expected = [[0, 1], [0.5, 0], [0.5, 0.75], [1, 0]]
    np.testing.assert_array_equal(explainer.energy_quantiles(energies), expected)


@pytest.mark.parametrize("level", range(4))
def test_heat_is_highest_at_an_unlikely_patch_at_whichever_level_sees_it(level: int) -> None:
    rng = np.random.default_rng(0)
    scales = np.array([1, 10, 100, 1000.0])[:, None, None]
    usual = rng.uniform(1, 2, (200, 4, 28, 20)) * scales
    energy_map = rng.uniform(1, 2, (4, 28, 20)) * scales
    energy_map[level, 18:22, 3:8] *= 4
    where = heat(fit_explainer(np.ones((1, 4)), fit_pixels(usual), None), energy_map)
    assert where.shape == (28, 20)
    assert np.abs(np.subtract(np.unravel_index(where.argmax(), where.shape), (20, 5))).max() <= 1
    assert where[18:22, 3:8].mean() > 4 > where.mean()


def test_heat_is_in_standard_deviations_of_the_pixel() -> None:
    std = np.ones((1, 40, 40))
    std[0, :, 20:] = 3.0
    found = heat(flat((1, 40, 40), std), np.full((1, 40, 40), 16.0))
    assert found[20, 5] == pytest.approx(6)
    assert found[20, 35] == pytest.approx(2)
    assert heat(flat((2, 8, 6)), np.full((2, 8, 6), 10.0)).tolist() == np.zeros((8, 6)).tolist()


def test_a_pixel_that_never_changes_is_not_infinitely_strange() -> None:
    std = np.ones((1, 20, 20))
    std[0, 0, 0] = 0
    energy_map = np.full((1, 20, 20), 10.0)
    energy_map[0, 0, 0] = 11
    assert 0 < heat(flat((1, 20, 20), std), energy_map).max() < 3
    assert np.isfinite(heat(flat((1, 20, 20), 0.0), energy_map)).all()


def test_smallest_images_have_heat_too() -> None:
    assert heat(flat((1, 1, 2)), np.array([[[1.0, 9.0]]])).shape == (1, 2)
    assert heat(flat((1, 1, 1)), np.array([[[1.0]]])).shape == (1, 1)


def test_overlay_keeps_the_image_in_grey_where_there_is_no_heat() -> None:
    pixels = np.full((4, 4, 3), 100, np.uint8)
    where = np.zeros((4, 4))
    where[0, 0], where[0, 1], where[1, 0], where[3, 3] = 9, 2.5, 1.0, -9
    shown = overlay(pixels, where)
    assert (shown.shape, shown.dtype) == ((4, 4, 3), np.uint8)
    assert (shown[1:, :3] == 70).all()
    assert (shown[3, 3] == 70).all()
    assert shown[0, 0].tolist() == [255, 255, 200]
    assert shown[0, 1, 0] > shown[0, 1, 2]
    assert overlay(pixels[..., :1], where).tolist() == shown.tolist()


def test_overlay_mixes_grey_and_colour_from_start_to_full() -> None:
    """The colours of docs: black at `start`, the hottest at `full`, evenly between; over grey at 0.7 of its level."""
    pixels = np.full((1, 5, 1), 200, np.uint8)
    warm = np.array([[2.0, 2.5, 3.0, 3.5, 4.0]])  # strengths 0, ¼, ½, ¾, 1
    shown = overlay(pixels, warm, start=2.0, full=4.0)[0]
    colours = np.array([(0, 0, 0), (120, 0, 20), (230, 60, 0), (255, 180, 0), (255, 255, 200)])
    strength = np.linspace(0, 1, 5)[:, None]
    np.testing.assert_array_equal(shown, ((1 - strength) * 140 + strength * colours).round())
    np.testing.assert_array_equal(overlay(pixels, warm), overlay(pixels, warm, 1.0, 4.0))
