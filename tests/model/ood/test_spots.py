"""Spots: heat against brute force, boxes, and that neither depends on the batch."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ddaebm.model.ood import spots
from ddaebm.model.ood.pixels import Pixels, fit_pixels
from ddaebm.model.ood.spots import Spots, boxes, fit_spots

Images = NDArray[np.uint8]


def surfaces(count: int, height: int = 12, width: int = 8, channels: int = 3, seed: int = 0) -> tuple[Images, NDArray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    return images, rng.gamma(2.0, size=(count, 2, height, width)).astype(np.float32)


@pytest.fixture(scope="module")
def fitted() -> tuple[Pixels, Spots]:
    images, maps = surfaces(60)
    pixels = fit_pixels(maps)
    return pixels, fit_spots(pixels, images, maps)


def vectors(pixels: Pixels, found: Spots, images: Images, maps: NDArray) -> NDArray[np.float64]:
    """Place by place, (N, H, W, T + 27)."""
    logs = (np.log(maps + pixels.log_offset) - pixels.log_mean) / pixels.log_std
    grey = (images - found.grey_mean) / found.grey_std
    count, height, width, _ = images.shape
    rows = np.empty((count, height, width, 2 + 27))
    for y in range(height):
        for x in range(width):
            near = [grey[:, min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
                    for dy in (-1, 0, 1) for dx in (-1, 0, 1)]  # fmt: skip
            rows[:, y, x] = np.concatenate([logs[:, :, y, x], *near], axis=1)
    return rows


def test_heat_is_its_formula(fitted: tuple[Pixels, Spots]) -> None:
    pixels, found = fitted
    images, maps = surfaces(60)
    rows = vectors(pixels, found, images, maps)
    flat = rows.reshape(-1, 29)
    covariance = np.cov(flat.T, bias=True)
    precision = np.linalg.inv(covariance + 1e-3 * np.trace(covariance) / 29 * np.eye(29))
    centred = rows - flat.mean(0)
    distance = np.einsum("nyxi,ij,nyxj->nyx", centred, precision, centred)
    padded = np.pad(distance, ((0, 0), (1, 1), (1, 1)), mode="edge")
    averaged = sum(padded[:, dy : dy + 12, dx : dx + 8] for dy in range(3) for dx in range(3)) / 9
    heat = np.sqrt(averaged / 29)
    heat /= np.median(heat.max((1, 2)))
    np.testing.assert_allclose(found.heatmaps(pixels, images, maps), heat, rtol=1e-3)


def test_half_of_the_ordinary_images_stay_below_one(fitted: tuple[Pixels, Spots]) -> None:
    heat = fitted[1].heatmaps(fitted[0], *surfaces(60))
    assert np.median(heat.max((1, 2))) == pytest.approx(1)


def test_heat_does_not_depend_on_the_batch_to_the_last_bit(
    fitted: tuple[Pixels, Spots], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, found = fitted
    images, maps = surfaces(40, seed=1)
    whole = found.heatmaps(pixels, images, maps)
    for i in (0, 7, 39):
        np.testing.assert_array_equal(found.heatmaps(pixels, images[i : i + 1], maps[i : i + 1])[0], whole[i])
    monkeypatch.setattr(spots, "_CHUNK", 10_000)
    np.testing.assert_array_equal(found.heatmaps(pixels, images, maps), whole)


def test_a_painted_fault_is_the_hottest_place_and_in_the_box() -> None:
    rng = np.random.default_rng(3)
    smooth = rng.normal(128, 10, (100, 24, 24, 1)).clip(0, 255).astype(np.uint8)
    maps = rng.gamma(2.0, size=(100, 4, 24, 24)).astype(np.float32)
    pixels = fit_pixels(maps)
    found = fit_spots(pixels, smooth, maps)
    faulty = smooth[:5].copy()
    faulty[:, 10:13, 4:8] = 255
    heat = found.heatmaps(pixels, faulty, maps[:5])
    assert (heat.max((1, 2)) > 2).all()
    for left, top, width, height in boxes(heat):
        assert (left <= 4, top <= 10, left + width >= 8, top + height >= 13) == (True,) * 4
        assert width * height <= 8 * 7


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 1, 9, 1), (3, 7, 1, 3)])
def test_the_smallest_images_have_heat_too(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    maps = np.ones((shape[0], 2, *shape[1:3]), np.float32)
    pixels = fit_pixels(maps)
    heat = fit_spots(pixels, images, maps).heatmaps(pixels, images, maps)
    assert heat.shape == shape[:3]
    assert np.isfinite(heat).all()


def test_a_box_holds_the_connected_places_of_half_the_heat() -> None:
    heat = np.zeros((3, 6, 9))
    heat[0, 2, 3:6] = 0.6, 1.0, 0.5
    heat[0, 3, 5] = 0.5
    heat[0, 5, 8] = 0.9  # hot, but elsewhere
    heat[0, 1, 4] = 0.49
    heat[1, 0, 0] = 3
    heat[2, :, :] = 1
    assert boxes(heat).tolist() == [[3, 2, 3, 2], [0, 0, 1, 1], [0, 0, 9, 6]]
