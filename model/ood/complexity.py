"""How complex an image is, by four numbers that need no network.

A network's energies do not show this: a flat frame, a repeated half or a blurred copy can leave them nearly unchanged.
Each number takes integers, so it is the same on every machine.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Their weights in the score: fine detail, equal neighbours, runs along rows, runs along columns.
WEIGHTS = (1 / 4, 1 / 4, 1 / 16, 1 / 16)
_LEAST_DETAIL = 0.1  # in grey levels; keeps the logarithm of a constant image finite
_LEAST_SHARE = 0.01  # the same for a share of equal neighbours
_RUN = 4  # pixels of a run
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio, for multiplicative hashing


def complexity(images: NDArray[np.uint8]) -> Floats:
    """Logarithms of the four numbers: images (B, H, W, C) -> (B, 4)."""
    columns = images.transpose(0, 2, 1, 3)
    found = fine_detail(images), equal_neighbours(images), distinct_runs(images), distinct_runs(columns)
    return np.stack(found, 1)


def fine_detail(images: NDArray[np.uint8]) -> Floats:
    """Logarithm of the mean absolute diagonal detail in grey levels: images (B, H, W, C) -> (B,).

    The diagonal detail is x_ij - x_(i+1)j - x_i(j+1) + x_(i+1)(j+1), the finest diagonal band of an undecimated Haar
    transform. It is 0 for edges along the axes and for slow changes of brightness, large for noise and small for blur.
    """
    rows = np.diff(images.astype(np.int16), axis=1)
    detail = np.abs(np.diff(rows, axis=2)).mean((1, 2, 3), dtype=np.float64)
    logs: Floats = np.log(detail + _LEAST_DETAIL)
    return logs


def equal_neighbours(images: NDArray[np.uint8]) -> Floats:
    """Logarithm of the share of neighbours along rows and columns with equal pixels: (B, H, W, C) -> (B,).

    It is high for flat borders, drawings and masks, and low for noise.
    """
    below = (images[:, 1:] == images[:, :-1]).all(3).mean((1, 2))
    beside = (images[:, :, 1:] == images[:, :, :-1]).all(3).mean((1, 2))
    logs: Floats = np.log((below + beside) / 2 + _LEAST_SHARE)
    return logs


def distinct_runs(images: NDArray[np.uint8]) -> Floats:
    """Logarithm of the share of distinct runs among all runs of four pixels along rows: (B, H, W, C) -> (B,).

    It is low for an image that repeats a part of itself, as the length of a compressed file is. Runs are compared by
    hashes of 64 bits.
    """
    pixels = np.zeros(images.shape[:3], np.uint64)
    for channel in np.moveaxis(images, 3, 0):
        pixels = pixels * np.uint64(256) + channel
    length = max(1, min(_RUN, images.shape[2]))
    last = images.shape[2] - length + 1
    runs = pixels[:, :, :last]
    for step in range(1, length):
        runs = runs * _MULTIPLIER + pixels[:, :, step : step + last]
    ordered = np.sort(runs.reshape(len(runs), -1), axis=1)
    distinct = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1)
    logs: Floats = np.log(distinct / ordered.shape[1])
    return logs
