"""Where an image is strange: heatmaps, the hottest spot, and the box around it.

Each place of an image has a vector: the T log energies of the pixel, and the pixel values of its 3×3 neighbourhood, all
standardised by that place in ordinary images. One Gaussian is fitted to the vectors of all places together. The heat of
a place is the Mahalanobis distance of its vector, averaged over 3×3 places, in units of the hottest spot of an ordinary
image: at 1, a place is as hot as the hottest place of the median image.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.ood.pixels import Pixels, moments

Floats = NDArray[np.float64]

_REACH = 1  # places on each side, of the neighbourhood and of the average
_LEAST, _FLOOR = 5.0, 0.5  # smallest std of a pixel value, in grey levels, and as a share of the mean std
_RIDGE = 1e-3  # added to the covariance, as a share of its mean variance
_CHUNK = 2**21  # values of the vectors that are in memory at a time
_GEMM = 2**18  # multiplications up to which OpenBLAS uses one thread
_BOX = 0.5  # a box holds the places around the hottest one that have this share of its heat


@dataclass(frozen=True)
class Spots:
    """The Gaussian of the vectors (V,) of places, V = T + 9·C."""

    grey_mean: NDArray[np.float32]  # (H, W, C), of pixel values
    grey_std: NDArray[np.float32]  # (H, W, C), above 0
    place_mean: NDArray[np.float32]  # (V,)
    place_whitening: NDArray[np.float32]  # (V, V), the Cholesky factor of the precision matrix
    unit: NDArray[np.float64]  # (1,), heat of an ordinary image's hottest spot at the median, above 0

    def heatmaps(self, pixels: Pixels, images: NDArray[np.uint8], energy_map: NDArray[np.floating]) -> Floats:
        """Images (B, H, W, C) and energy maps (B, T, H, W) -> heat (B, H, W), at least 0."""
        heat = np.empty(images.shape[:3])
        for part in _chunks(len(images), images.shape[1] * images.shape[2] * len(self.place_mean)):
            distance = self._distance(self._vectors(pixels, images[part], energy_map[part]))
            heat[part] = np.sqrt(_averaged(distance) / len(self.place_mean)) / self.unit
        return heat

    def _vectors(
        self, pixels: Pixels, images: NDArray[np.uint8], energy_map: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """The vector of each place, (B, H, W, V)."""
        grey = (images - self.grey_mean) / self.grey_std
        logs = pixels.standardise_logs(energy_map).transpose(0, 2, 3, 1)
        return np.concatenate([logs, *_neighbours(grey)], axis=3)

    def _distance(self, vectors: NDArray[np.float32]) -> Floats:
        """Squared Mahalanobis distance (B, H, W) of vectors (B, H, W, V)."""
        count, height, width, size = vectors.shape
        # In blocks of rows: products of this size start no threads, and do not depend on what else is in the batch.
        rows = max(r for r in range(1, height + 1) if height % r == 0 and (r == 1 or r * width * size**2 <= _GEMM))
        blocks = (vectors - self.place_mean).reshape(count * height // rows, rows * width, size)
        distance: Floats = np.square(blocks @ self.place_whitening).sum(2, dtype=np.float64)
        return distance.reshape(count, height, width)


def fit_spots(pixels: Pixels, images: NDArray[np.uint8], energy_map: NDArray[np.floating]) -> Spots:
    """Fit the Gaussian to all places of ordinary images (N, H, W, C) with energy maps (N, T, H, W)."""
    mean, std = moments(images[part].astype(np.float32) for part in _chunks(len(images), images[0].size))
    size = energy_map.shape[1] + (2 * _REACH + 1) ** 2 * images.shape[3]
    floored = np.maximum(std, max(_LEAST, _FLOOR * std.mean()))
    spots = Spots(
        mean.astype(np.float32), floored.astype(np.float32), np.zeros(size, np.float32),
        np.eye(size, dtype=np.float32), np.ones(1),
    )  # fmt: skip
    total, squares, count = np.zeros(size), np.zeros((size, size)), 0
    for part in _chunks(len(images), energy_map[0, 0].size * size):
        rows = spots._vectors(pixels, images[part], energy_map[part]).reshape(-1, size).astype(np.float64)
        total, squares, count = total + rows.sum(0), squares + rows.T @ rows, count + len(rows)
    centre = total / count
    covariance = squares / count - np.outer(centre, centre)
    covariance += max(_RIDGE * np.trace(covariance) / size, 1e-9) * np.eye(size)
    whitening = np.linalg.cholesky(np.linalg.inv(covariance))
    spots = replace(spots, place_mean=centre.astype(np.float32), place_whitening=whitening.astype(np.float32))
    median = np.median(spots.heatmaps(pixels, images, energy_map).max((1, 2)))
    return replace(spots, unit=np.maximum(median, 1e-6).reshape(1))


def boxes(heat: Floats) -> NDArray[np.int64]:
    """The box around the hottest place of each map: heat (B, H, W) -> left, top, width, height (B, 4), in places.

    It holds the connected places around the hottest one that have at least half of its heat.
    """
    found = [box_of(around_hottest(values, _BOX * values.max())) for values in heat]
    return np.array(found, np.int64).reshape(-1, 4)


def around_hottest(heat: Floats, least: float) -> NDArray[np.bool_]:
    """The connected places around the hottest one of heat (H, W) with a heat of `least` or more, (H, W)."""
    hot = heat >= least
    region = np.zeros_like(hot)
    region[np.unravel_index(heat.argmax(), heat.shape)] = True
    size = 0
    while size != (size := int(region.sum())):
        grown = region.copy()
        grown[1:] |= region[:-1]
        grown[:-1] |= region[1:]
        grown[:, 1:] |= region[:, :-1]
        grown[:, :-1] |= region[:, 1:]
        region = grown & hot
    return region


def box_of(region: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(left, top, width, height) of the places of a region (H, W)."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    return (
        int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)
    )  # fmt: skip


def _chunks(count: int, each: int) -> list[slice]:
    """Slices of `count` items of `each` values, of at most `_CHUNK` values."""
    step = max(1, _CHUNK // max(each, 1))
    return [slice(start, start + step) for start in range(0, count, step)]


def _neighbours(values: NDArray[Any]) -> list[NDArray[Any]]:
    """The values (B, H, W, C) of each place's neighbours, itself among them, with edges repeated."""
    reach = _REACH
    padded = np.pad(values, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    height, width = values.shape[1:3]
    steps = range(2 * reach + 1)
    return [padded[:, dy : dy + height, dx : dx + width] for dy in steps for dx in steps]


def _averaged(values: Floats) -> Floats:
    """The mean over each place's neighbours, (B, H, W)."""
    parts = _neighbours(values[..., None])
    averaged: Floats = sum(parts[1:], parts[0])[..., 0] / len(parts)
    return averaged
