"""Heat sits where the energy does, and an overlay shows it."""

import numpy as np

from model.heatmap import heat, overlay


def test_heat_is_highest_at_an_unlikely_patch_at_whichever_level_sees_it() -> None:
    rng = np.random.default_rng(0)
    for level in range(4):
        energy_map = rng.uniform(1, 2, (4, 28, 20)) * np.array([1, 10, 100, 1000])[:, None, None]
        energy_map[level, 18:22, 3:8] *= 4
        where = heat(energy_map)
        assert where.shape == (28, 20)
        assert np.abs(np.subtract(np.unravel_index(where.argmax(), where.shape), (20, 5))).max() <= 1
        assert where[18:22, 3:8].mean() > 2 * where.mean()


def test_scaling_a_level_changes_nothing_and_an_even_map_has_no_heat() -> None:
    energy_map = np.random.default_rng(1).uniform(0, 1, (2, 8, 6))
    np.testing.assert_allclose(heat(energy_map), heat(energy_map * np.array([3, 0.01])[:, None, None]))
    assert (heat(np.full((2, 8, 6), 5.0)) == 0).all()


def test_smallest_images_have_heat_too() -> None:
    assert heat(np.array([[[1.0, 9.0]]])).shape == (1, 2)
    assert heat(np.array([[[1.0]]])).shape == (1, 1)


def test_overlay_keeps_the_image_in_grey_where_there_is_no_heat() -> None:
    pixels = np.full((4, 4, 3), 100, np.uint8)
    where = np.zeros((4, 4))
    where[0, 0], where[0, 1], where[3, 3] = 9, 1.5, -9
    shown = overlay(pixels, where)
    assert (shown.shape, shown.dtype) == ((4, 4, 3), np.uint8)
    assert (shown[1:, :3] == 70).all()
    assert (shown[3, 3] == 70).all()
    assert shown[0, 0].tolist() == [255, 255, 200]
    assert shown[0, 1, 0] > shown[0, 1, 2]
    assert overlay(pixels[..., :1], where).tolist() == shown.tolist()
