"""Per-pixel energy statistics.

A few bad pixels hardly change the energy of a level, which is a sum over all pixels. Their own energies, however, are
far from the energies that these pixels have in ordinary images.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SHARE = 0.03  # offset before the logarithm, as a share of a level's mean pixel energy; bounds logs of tiny energies
_FLOOR = 0.5  # smallest pixel std, as a share of a level's mean std; corners that are always black have a std of 0
_BATCH = 250  # images whose energies are in memory in float64
_LEAST = 0.1  # smallest deviation of the largest pixel, in standard deviations, before the logarithm


@dataclass(frozen=True)
class Pixels:
    """Mean and standard deviation of each pixel's energy, and of its logarithm, over the reference images."""

    pixel_mean: NDArray[np.float32]  # (T, H, W)
    pixel_std: NDArray[np.float32]  # (T, H, W), above 0
    log_offset: NDArray[np.float32]  # (T, 1, 1), added to energies before the logarithm
    log_mean: NDArray[np.float32]  # (T, H, W)
    log_std: NDArray[np.float32]  # (T, H, W), above 0

    def standardise(self, energy_map: NDArray[np.floating]) -> NDArray[np.floating]:
        """Standardise energy maps (..., T, H, W): deviation from each pixel's mean in standard deviations."""
        z: NDArray[np.floating] = (energy_map - self.pixel_mean) / self.pixel_std
        return z

    def standardise_logs(self, energy_map: NDArray[np.floating]) -> NDArray[np.float32]:
        """As `standardise`, of the logarithms of energies."""
        logs: NDArray[np.float32] = (_logs(energy_map, self.log_offset) - self.log_mean) / self.log_std
        return logs

    def statistics(self, energy_map: NDArray[np.floating]) -> NDArray[np.float64]:
        """Two statistics of each level, in logarithms: energy maps (B, T, H, W) -> (B, 2T).

        The first T columns are the largest standardised log energy of a pixel, which detects single bad pixels. The
        last T are the root mean square of the standardised energies, which detects many.
        """
        largest = np.log(np.maximum(self.standardise_logs(energy_map).max((2, 3)), _LEAST), dtype=np.float64)
        norm = np.log(np.square(self.standardise(energy_map)).mean((2, 3)) + 1e-12, dtype=np.float64) / 2
        return np.hstack([largest, norm])


def fit_pixels(energy_map: NDArray[np.floating]) -> Pixels:
    """Fit the statistics of ordinary images, from their energy maps (N, T, H, W)."""
    batches = [energy_map[start : start + _BATCH] for start in range(0, len(energy_map), _BATCH)]
    mean, std = moments(batches)
    offset = np.maximum(_SHARE * mean.mean((1, 2), keepdims=True), 1e-12).astype(np.float32)
    log_mean, log_std = moments(_logs(maps, offset) for maps in batches)
    single = (
        np.asarray(of, np.float32) for of in (mean, _floored(std, 1e-12), offset, log_mean, _floored(log_std, 1e-6))
    )
    return Pixels(*single)


def moments(batches: Iterable[NDArray[np.floating]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (...) over the rows of all arrays (n, ...). Keeps one array in memory at a time."""
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
