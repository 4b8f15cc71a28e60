"""Dense scores of large images: the heat of each place, and what of it makes the score of the image.

The energy network is convolutional. Run on an image of any size, its contracting half gives a feature map for each
resolution. `places.onnx` brings them to the grid of the coarsest: for each of A channels the mean of the activations in
a place, and the mean of their squares. The vector of a place holds the means and the logarithms of the mean squares,
brought to R whitened principal components.

A Gaussian is fitted to these vectors in ordinary images. Heat is the root mean square of the whitened vector, in units
of the hottest place of an ordinary image, at the median. The Gaussian is either the same for all places, or has a mean
and a standard deviation of its own at each place, which is better where images are aligned (Defard, Setkov, Loesch,
Audigier 2021, *PaDiM*, has a full covariance for each place: hundreds of megabytes at this size).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.errors import DataError

Floats = NDArray[np.float64]

PLACES_FORMS: dict[str, bool] = {"all places alike": False, "each place its own": True}
DEFAULT_PLACES_FORM = "all places alike"
COMPONENTS = 256  # R, at most
_LEARN, _ROWS = 64, 2**16  # images and places, at most, that the principal components are computed from
_OFFSET = 0.02  # added before the logarithm, as a share of a channel's mean square
_RIDGE = 1e-3  # added to the variance of each component, as a share of the mean variance
_FLOOR = 0.5  # smallest std of a place, as a share of the mean over places
_HOT = 1 / 64  # share of the places whose mean heat is the second statistic
_PART = 8  # images at a time


@dataclass(frozen=True)
class Basis:
    """From the 2A outputs of the network at a place to R whitened principal components."""

    offset: NDArray[np.float32]  # (A,), above 0
    centre: NDArray[np.float32]  # (2A,)
    projection: NDArray[np.float32]  # (2A, R)

    def project(self, outputs: NDArray[np.float32]) -> NDArray[np.float16]:
        """Outputs of `places.onnx`, (B, 2A, h, w) -> vectors (B, h, w, R)."""
        count = outputs.shape[1] // 2
        vectors = np.moveaxis(outputs, 1, 3).copy()
        vectors[..., count:] = np.log(vectors[..., count:] + self.offset)
        # One product for each row of places: it does not depend on what else is in the batch.
        return ((vectors - self.centre) @ self.projection).clip(-6e4, 6e4).astype(np.float16)


@dataclass(frozen=True)
class Dense:
    """A fitted basis and Gaussian."""

    offset: NDArray[np.float32]  # as `Basis`
    centre: NDArray[np.float32]
    projection: NDArray[np.float32]
    dense_mean: NDArray[np.float32]  # (h, w, R), or (1, 1, R): all places alike
    dense_std: NDArray[np.float32]  # of the same shape, above 0
    dense_whitening: NDArray[np.float32]  # (R, R)
    region: NDArray[np.float32]  # (h, w), 1: the place counts, 0: it does not
    unit: NDArray[np.float64]  # (1,), above 0

    @property
    def basis(self) -> Basis:
        return Basis(self.offset, self.centre, self.projection)

    def heat(self, places: NDArray[np.float16]) -> Floats:
        """Vectors (B, h, w, R) -> heat (B, h, w), at least 0, and 0 where a vector is NaN."""
        heat = np.empty(places.shape[:3])
        for part in _parts(len(places)):
            standard = (places[part] - self.dense_mean) / self.dense_std
            heat[part] = np.sqrt(np.square(standard @ self.dense_whitening).mean(3, dtype=np.float64))
        return np.nan_to_num(heat, nan=0.0, posinf=0.0) / self.unit


def hot_statistics(heat: Floats) -> Floats:
    """Return the hottest place of heat (B, h, w), and the mean of the hottest 64th of the places: (B, 2)."""
    flat = heat.reshape(len(heat), -1)
    count = max(1, round(_HOT * flat.shape[1]))
    hottest = np.partition(flat, flat.shape[1] - count, axis=1)[:, -count:]
    return np.stack([flat.max(1), hottest.mean(1)], 1)


def fit_basis(outputs_of: Callable[[NDArray[np.uint8]], NDArray[np.float32]], images: NDArray[np.uint8]) -> Basis:
    """Principal components of the places of ordinary images (n, H, W, C).

    Args:
        outputs_of: Runs `places.onnx`: images (B, H, W, C) -> (B, 2A, h, w), NaN at places that do not count.

    Raises:
        DataError: No place counts.
    """
    learn = np.linspace(0, len(images) - 1, min(len(images), _LEARN)).round().astype(np.int64)
    found = []
    for i in learn:
        outputs = outputs_of(images[i : i + 1])[0]
        places = outputs.reshape(len(outputs), -1).T  # (h·w, 2A)
        places = places[~np.isnan(places[:, 0])]  # those that count
        found.append(places[np.random.default_rng(i).permutation(len(places))[: _ROWS // len(learn)]])
    rows = np.concatenate(found).astype(np.float64)
    if not len(rows):
        raise DataError("no place of the images is wholly opaque and in the mask; give others, or a larger mask")
    count = rows.shape[1] // 2
    offset = np.maximum(_OFFSET * rows[:, count:].mean(0), 1e-12).astype(np.float32)
    rows[:, count:] = np.log(rows[:, count:] + offset)
    centre, std = rows.mean(0), np.maximum(rows.std(0), 1e-6)
    standard = (rows - centre) / std
    values, axes = np.linalg.eigh(standard.T @ standard / len(standard))
    kept = slice(None, -min(COMPONENTS, len(values), len(rows)) - 1, -1)  # the largest first
    projection = axes[:, kept] / np.sqrt(np.maximum(values[kept], 0) + max(_RIDGE * values.mean(), 1e-9)) / std[:, None]
    return Basis(offset, centre.astype(np.float32), projection.astype(np.float32))


def fit_dense(basis: Basis, places: NDArray[np.float16], form: str, region: NDArray[np.float32]) -> Dense:
    """Fit the Gaussian to all places of ordinary images, vectors (N, h, w, R), NaN at places that do not count.

    Args:
        form: One of `PLACES_FORMS`.
        region: The places that count, (h, w).
    """
    axes: tuple[int, ...] = (0,) if PLACES_FORMS[form] else (0, 1, 2)
    mean, std = _moments(places, axes)
    std = np.maximum(std, np.maximum(_FLOOR * std.mean((0, 1)), 1e-6))
    size = places.shape[3]
    covariance, count = np.zeros((size, size)), 0
    for part in _parts(len(places)):
        rows = ((places[part] - mean) / std).reshape(-1, size)
        rows = rows[~np.isnan(rows[:, 0])].astype(np.float64)
        covariance, count = covariance + rows.T @ rows, count + len(rows)
    covariance /= max(count, 1)
    covariance += max(_RIDGE * np.trace(covariance) / size, 1e-9) * np.eye(size)
    whitening = np.linalg.cholesky(np.linalg.inv(covariance)).astype(np.float32)
    dense = Dense(basis.offset, basis.centre, basis.projection, mean, std, whitening, region, np.ones(1))
    return replace(dense, unit=np.maximum(np.median(dense.heat(places).max((1, 2))), 1e-6).reshape(1))


def _moments(places: NDArray[np.float16], axes: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of vectors (N, h, w, R) over `axes`, which stay as axes of length 1 but for N."""
    total, squares, count = np.zeros(()), np.zeros(()), np.zeros(())
    for part in _parts(len(places)):
        values = places[part].astype(np.float64)
        known = ~np.isnan(values)
        values = np.where(known, values, 0)
        total, squares = total + values.sum(axes, keepdims=True), squares + np.square(values).sum(axes, keepdims=True)
        count = count + known.sum(axes, keepdims=True)
    mean = total / np.maximum(count, 1)
    std = np.sqrt(np.maximum(squares / np.maximum(count, 1) - np.square(mean), 0))
    return mean[0].astype(np.float32), std[0].astype(np.float32)


def _parts(count: int) -> list[slice]:
    return [slice(start, start + _PART) for start in range(0, count, _PART)]
