"""Dense scores: vectors of places, their Gaussian, and the regions of a heatmap."""

import numpy as np
import pytest

from ddaebm.model.ood.dense import PLACES_FORMS, Basis, fit_basis, fit_dense, hot_statistics
from ddaebm.model.ood.masks import colour_of, masked, without
from ddaebm.model.ood.regions import Region, regions

GRID = 8
EVERYWHERE = np.ones((GRID, GRID), np.float32)


def outputs_of(images: np.ndarray) -> np.ndarray:
    """In place of the network: means and mean squares of 4x4 pixels, of the grey levels and of their rows' changes."""
    grey = images[..., 0] / 255.0
    channels = np.stack([grey, np.diff(grey, axis=1, append=grey[:, -1:])], 1)
    both = np.concatenate([channels, channels**2], 1)
    return both.reshape(len(images), 4, GRID, 4, GRID, 4).mean((3, 5)).astype(np.float32)


def ordinary(count: int, seed: int = 0, gradient: float = 0) -> np.ndarray:
    """Noise, with a mean that rises from left to right by `gradient` grey levels."""
    noise = np.random.default_rng(seed).normal(100, 10, (count, 4 * GRID, 4 * GRID, 1))
    return (noise + gradient * np.linspace(0, 1, 4 * GRID)[:, None]).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def basis() -> Basis:
    return fit_basis(outputs_of, ordinary(40))


def test_components_of_ordinary_places_have_mean_0_and_are_white(basis: Basis) -> None:
    rows = basis.project(outputs_of(ordinary(40))).reshape(-1, 4).astype(float)
    np.testing.assert_allclose(rows.mean(0), 0, atol=0.05)
    covariance = np.cov(rows.T)
    np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=0.01)
    np.testing.assert_allclose(np.diag(covariance)[:3], 1, atol=0.01)  # the fourth is next to nothing before the ridge


def test_heat_is_the_whitened_distance_in_units_of_the_median_hottest_place(basis: Basis) -> None:
    places = basis.project(outputs_of(ordinary(40)))
    dense = fit_dense(basis, places, "all places alike", EVERYWHERE)
    rows = places.reshape(-1, 4).astype(float)
    covariance = np.cov(rows.T, bias=True)
    distance = np.sqrt(
        np.einsum("ni,ij,nj->n", rows - rows.mean(0), np.linalg.inv(covariance), rows - rows.mean(0)) / 4
    )
    heat = distance.reshape(40, GRID, GRID)
    np.testing.assert_allclose(dense.heat(places), heat / np.median(heat.max((1, 2))), rtol=0.01)


@pytest.mark.parametrize("form", PLACES_FORMS)
def test_a_fault_is_hottest_where_it_is(basis: Basis, form: str) -> None:
    dense = fit_dense(basis, basis.project(outputs_of(ordinary(40))), form, EVERYWHERE)
    faulty = ordinary(5, seed=1)
    faulty[:, 12:16, 20:24] = 0
    heat = dense.heat(basis.project(outputs_of(faulty)))
    assert (heat.reshape(5, -1).argmax(1) == 3 * GRID + 5).all()
    assert heat.max() > 2


def test_places_of_their_own_see_what_is_ordinary_elsewhere() -> None:
    images = ordinary(60, gradient=100)
    basis = fit_basis(outputs_of, images)
    mirrored = ordinary(20, seed=1, gradient=100)[:, :, ::-1]  # every place is ordinary, elsewhere
    hottest = {}
    for form in PLACES_FORMS:
        dense = fit_dense(basis, basis.project(outputs_of(images)), form, EVERYWHERE)
        hottest[form] = dense.heat(basis.project(outputs_of(mirrored))).max((1, 2))
    assert hottest["each place its own"].min() > 2
    assert hottest["all places alike"].max() < 2


def test_an_image_is_scored_alike_whatever_shares_its_batch(basis: Basis) -> None:
    outputs = outputs_of(ordinary(20))
    dense = fit_dense(basis, basis.project(outputs), "each place its own", EVERYWHERE)
    together = dense.heat(basis.project(outputs))
    for i in range(20):
        np.testing.assert_array_equal(dense.heat(basis.project(outputs[i : i + 1]))[0], together[i])


def test_places_that_do_not_count_are_black_and_cold_and_fit_nothing(basis: Basis) -> None:
    region = EVERYWHERE.copy()
    region[:4] = 0
    images, counts = masked(ordinary(40), region)
    assert not images[:, :16].any()
    np.testing.assert_array_equal(images[:, 16:], ordinary(40)[:, 16:])
    assert (counts == (region > 0)).all()
    places = without(basis.project(outputs_of(images)), counts)
    dense = fit_dense(basis, places, "all places alike", region)
    whole = fit_dense(basis, basis.project(outputs_of(ordinary(40)))[:, 4:], "all places alike", region[4:])
    np.testing.assert_allclose(dense.dense_whitening, whole.dense_whitening, rtol=1e-4, atol=1e-5)
    heat = dense.heat(places)
    assert not heat[:, :4].any()
    assert heat[:, 4:].all()


def test_a_place_counts_where_it_is_wholly_opaque() -> None:
    images = np.full((2, 32, 32, 4), 255, np.uint8)
    images[0, 3, 3, 3] = 254
    images[1, 8:, :, 3] = 0
    colour, counts = masked(images, EVERYWHERE)
    np.testing.assert_array_equal(colour, images[..., :3])
    assert not counts[0, 0, 0]
    assert counts[0].sum() == GRID * GRID - 1
    assert counts[1, :2].all()
    assert not counts[1, 2:].any()


@pytest.mark.parametrize(("channels", "left"), [(1, 1), (2, 1), (3, 3), (4, 3)])
def test_opacity_is_no_colour(channels: int, left: int) -> None:
    assert colour_of(np.zeros((2, 5, 5, channels), np.uint8)).shape == (2, 5, 5, left)


def test_the_statistics_are_the_hottest_place_and_the_mean_of_the_hottest_64th() -> None:
    heat = np.arange(2 * 16 * 16.0).reshape(2, 16, 16)
    np.testing.assert_allclose(hot_statistics(heat), [[255, np.mean([252, 253, 254, 255])], [511, 509.5]])


def test_regions_are_boxes_in_pixels_with_the_strongest_first() -> None:
    heat = np.full((GRID, GRID), 0.4)
    heat[1:3, 1:4] = 1.5
    heat[1, 1] = 2
    heat[6, 5] = 3
    assert regions(heat, 4 * GRID) == [Region(20, 24, 4, 4, 3.0), Region(4, 4, 12, 8, 2.0)]
    assert regions(heat, 4 * GRID)[0].box == [20, 24, 4, 4]


def test_an_ordinary_image_has_no_region_and_no_image_more_than_five() -> None:
    assert regions(np.full((GRID, GRID), 0.99), GRID) == []
    spots = np.zeros((GRID, GRID))
    spots[::2, ::2] = 1
    assert len(regions(spots, GRID)) == 5
