"""How unlike itself in other images a pixel's energy is: what the sum over pixels, a level's energy, loses.

A few bad pixels hardly change the energy of a level, but each has an energy that it never had in ordinary images.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SHARE = 0.03  # of a level's mean energy of a pixel, added before the logarithm: nearly nothing is no small energy
_FLOOR = 0.5  # of a pixel's std, in means over the level: a corner that is always black is not infinitely strange
_LEAST = 0.1  # standard deviations, of the largest pixel: its logarithm is taken


@dataclass(frozen=True)
class Pixels:
    """What each pixel's energy, and the logarithm of it, are like over the reference images."""

    pixel_mean: NDArray[np.float32]  # (T, H, W)
    pixel_std: NDArray[np.float32]  # (T, H, W), above 0
    log_offset: NDArray[np.float32]  # (T, 1, 1), added to energies before the logarithm
    log_mean: NDArray[np.float32]  # (T, H, W)
    log_std: NDArray[np.float32]  # (T, H, W), above 0

    def standardise(self, energy_map: NDArray[np.floating]) -> NDArray[np.floating]:
        """Energy maps (..., T, H, W), each pixel in its standard deviations from its mean."""
        z: NDArray[np.floating] = (energy_map - self.pixel_mean) / self.pixel_std
        return z

    def statistics(self, energy_map: NDArray[np.floating]) -> NDArray[np.float64]:
        """Energy maps (B, T, H, W) -> (B, 2T), in logarithms: of each level the largest of the pixels' standardised
        log energies, which is one bad pixel, then the 2-norm (root mean square) of their standardised energies, which
        is many."""
        logs = (_logs(energy_map, self.log_offset) - self.log_mean) / self.log_std
        largest = np.log(np.maximum(logs.max((2, 3)), _LEAST), dtype=np.float64)
        norm = np.log(np.square(self.standardise(energy_map)).mean((2, 3)) + 1e-12, dtype=np.float64) / 2
        return np.hstack([largest, norm])


def fit_pixels(energy_maps: Callable[[], Iterable[NDArray[np.floating]]]) -> Pixels:
    """From the energy maps (n, T, H, W) of the reference images, asked for twice and a batch at a time."""
    mean, std = moments(energy_maps())
    offset = np.maximum(_SHARE * mean.mean((1, 2), keepdims=True), 1e-12).astype(np.float32)
    log_mean, log_std = moments(_logs(maps, offset) for maps in energy_maps())
    single = (
        np.asarray(of, np.float32) for of in (mean, _floored(std, 1e-12), offset, log_mean, _floored(log_std, 1e-6))
    )
    return Pixels(*single)


def moments(batches: Iterable[NDArray[np.floating]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (...) over all rows of arrays (n, ...), of which one at a time is in memory."""
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for batch in batches:
        values = batch.astype(np.float64)
        count, total, squares = count + len(values), total + values.sum(0), squares + np.square(values).sum(0)
    mean = total / max(count, 1)
    return mean, np.sqrt(np.maximum(squares / max(count, 1) - np.square(mean), 0))


def _floored(std: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    floored: NDArray[np.float64] = np.maximum(std, np.maximum(_FLOOR * std.mean((1, 2), keepdims=True), least))
    return floored


def _logs(energy_map: NDArray[np.floating], offset: NDArray[np.float32]) -> NDArray[np.float32]:
    logs: NDArray[np.float32] = np.log(energy_map + offset, dtype=np.float32)
    return logs
