"""Explain a score: which level finds an image unusual, and at which pixels.

The energy of a level is a sum over pixels, E_k = Σ_p E_k(p). Both explanations compare these energies with those of
held-out images.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.ood.pixels import Pixels

_SMOOTHING = 0.07  # std of the Gaussian, as a fraction of the image side; unsmoothed maps alternate from pixel to pixel


@dataclass(frozen=True)
class Explainer:
    """Energies of held-out images, for comparison."""

    log_energies: NDArray[np.float32]  # (T, n), of the calibration images, ascending in each level
    pixels: Pixels

    def energy_quantiles(self, energies: NDArray[np.floating]) -> NDArray[np.float64]:
        """Share of calibration images with a lower energy at each level: energies (B, T) -> (B, T).

        A share near 1 means that the image is unusually hard for the level, near 0 unusually easy.
        """
        logs = log_energies(energies).astype(np.float32)  # the dtype of self.log_energies
        levels = zip(self.log_energies, logs.T, strict=True)
        below = np.stack([np.searchsorted(known, values, side="left") for known, values in levels], 1)
        shares: NDArray[np.float64] = below / self.log_energies.shape[1]
        return shares

    def heat(self, energy_map: NDArray[np.floating]) -> NDArray[np.float64]:
        """Heatmap of one image: energy map (T, H, W) -> (H, W), smoothed.

        The unit is the standard deviation of a pixel's energy over held-out images. Each pixel shows the level with the
        largest deviation.
        """
        return _smooth(self.pixels.standardise(energy_map).max(0))


def fit_explainer(log_energies: NDArray[np.floating], pixels: Pixels) -> Explainer:
    """Make an explainer from log energies (n, T) of calibration images and pixel statistics of reference images."""
    return Explainer(np.sort(log_energies.T.astype(np.float32), axis=1), pixels)


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
