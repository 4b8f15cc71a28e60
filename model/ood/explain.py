"""Explain a score: which level finds an image unusual, and at which pixels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.ood.dense import Dense
from ddaebm.model.ood.pixels import Pixels
from ddaebm.model.ood.spots import Spots

_SMOOTHING = 0.07  # std of the Gaussian, as a fraction of the image side; unsmoothed maps alternate from pixel to pixel


@dataclass(frozen=True)
class Explainer:
    """Energies of held-out images, for comparison."""

    log_energies: NDArray[np.float32]  # (T, n), of the calibration images, ascending in each level
    pixels: Pixels
    spots: Spots | Dense | None  # None in bundles of format 5

    def energy_quantiles(self, energies: NDArray[np.floating]) -> NDArray[np.float64]:
        """Share of calibration images with a lower energy at each level: energies (B, T) -> (B, T).

        A share near 1 means that the image is unusually hard for the level, near 0 unusually easy.
        """
        logs = log_energies(energies).astype(np.float32)  # the dtype of self.log_energies
        levels = zip(self.log_energies, logs.T, strict=True)
        below = np.stack([np.searchsorted(known, values, side="left") for known, values in levels], 1)
        shares: NDArray[np.float64] = below / self.log_energies.shape[1]
        return shares

    @property
    def warm(self) -> tuple[float, float]:
        """Heat at which the colours of a picture begin, and heat of the hottest one."""
        return (1.0, 4.0) if self.spots is None else (0.8, 1.8)

    def heatmaps(self, images: NDArray[np.uint8], energy_map: NDArray[np.floating]) -> NDArray[np.float64]:
        """Images (B, H, W, C) and energy maps (B, T, H, W) -> heat (B, H, W); `model.ood.spots` has the unit.

        Not for a dense score, whose heat is that of `model.ood.dense`.

        Without spots: the deviation of a pixel's energy at the level where it is largest, in standard deviations,
        smoothed.
        """
        assert not isinstance(self.spots, Dense)
        if self.spots is not None:
            return self.spots.heatmaps(self.pixels, images, energy_map)
        deviations = self.pixels.standardise(energy_map).max(1)
        return np.stack([_smooth(deviation) for deviation in deviations])


def fit_explainer(energies: NDArray[np.floating], pixels: Pixels, spots: Spots | Dense | None) -> Explainer:
    """Make an explainer from energies (n, T) of calibration images and statistics of reference images."""
    return Explainer(np.sort(log_energies(energies).T.astype(np.float32), axis=1), pixels, spots)


def log_energies(energies: NDArray[np.floating]) -> NDArray[np.float64]:
    """Logarithm of energies, which is close to Gaussian; energies themselves have a long right tail.

    The result is float64. At late levels the logarithm varies by less than 0.01 between images and the features explain
    nearly all of that, so that the rounding errors of float32 would show in the score.
    """
    logs: NDArray[np.float64] = np.log(np.maximum(energies.astype(np.float64), 1e-12))
    return logs


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian blur of (H, W), with reflected edges."""
    for axis, side in enumerate(values.shape):
        sigma = max(_SMOOTHING * side, 0.5)
        reach = min(int(3 * sigma) + 1, side - 1)
        offsets = np.arange(-reach, reach + 1)
        weights = np.exp(-0.5 * (offsets / sigma) ** 2)
        padded = np.pad(values, [(reach, reach) if a == axis else (0, 0) for a in range(2)], mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis)
        values = windows @ (weights / weights.sum())
    return values
