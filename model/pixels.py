"""How unlike itself in other images a pixel's energy is: what the sum over pixels, a level's energy, loses.

A few bad pixels hardly change the energy of a level, but each has an energy that it never had in ordinary images.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SHARE = 0.03  # of a level's mean energy of a pixel, added before the logarithm: nearly nothing is no small energy
_FLOOR = 0.5  # of a pixel's std, in means over the level: a corner that is always black is not infinitely strange
_LEAST = 0.1  # standard deviations, of the largest pixel: its logarithm is taken


@dataclass(frozen=True)
class Pixels:
    """What the logarithm of each pixel's energy is like over the reference images."""

    log_offset: NDArray[np.float32]  # (T, 1, 1), added to energies before the logarithm
    log_mean: NDArray[np.float32]  # (T, H, W)
    log_std: NDArray[np.float32]  # (T, H, W), above 0

    def statistics(self, energy_map: NDArray[np.floating]) -> NDArray[np.float64]:
        """Energy maps (B, T, H, W) -> (B, 2T): the logarithms of the largest of the standardised pixels of each
        level, then of their 2-norms (root mean squares)."""
        z = (_logs(energy_map, self.log_offset) - self.log_mean) / self.log_std
        z = z.reshape(*z.shape[:2], -1)
        largest = np.log(np.maximum(z.max(2), _LEAST), dtype=np.float64)
        norm = np.log(np.square(z).mean(2) + 1e-12, dtype=np.float64) / 2
        return np.hstack([largest, norm])


def fit_pixels(energy_maps: Iterable[NDArray[np.floating]], pixel_mean: NDArray[np.float64]) -> Pixels:
    """From energy maps (n, T, H, W) of the reference images, a batch at a time, and their mean (T, H, W)."""
    offset = np.maximum(_SHARE * pixel_mean.mean((1, 2), keepdims=True), 1e-12).astype(np.float32)
    mean, std = moments(_logs(maps, offset) for maps in energy_maps)
    std = np.maximum(std, np.maximum(_FLOOR * std.mean((1, 2), keepdims=True), 1e-6))
    return Pixels(offset, mean.astype(np.float32), std.astype(np.float32))


def moments(batches: Iterable[NDArray[np.floating]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (...) over all rows of arrays (n, ...), of which one at a time is in memory."""
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for batch in batches:
        values = batch.astype(np.float64)
        count, total, squares = count + len(values), total + values.sum(0), squares + np.square(values).sum(0)
    mean = total / max(count, 1)
    return mean, np.sqrt(np.maximum(squares / max(count, 1) - np.square(mean), 0))


def _logs(energy_map: NDArray[np.floating], offset: NDArray[np.float32]) -> NDArray[np.float32]:
    logs: NDArray[np.float32] = np.log(energy_map + offset, dtype=np.float32)
    return logs
