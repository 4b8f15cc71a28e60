"""Why an image scores as it does: which level finds it unusual, and where in the picture.

The energy of a level is a sum over pixels, E_k = Σ_p E_k(p), so both are read off the energies themselves, beside those
of held-out images.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.ood.pixels import Pixels

_SMOOTHING = 0.07  # std of the Gaussian, in image sides: a level's map alternates from pixel to pixel


@dataclass(frozen=True)
class Explainer:
    """What the energies of held-out images are like."""

    log_energies: NDArray[np.float32]  # (T, n), of the calibration images, each level ascending
    pixels: Pixels

    def energy_quantiles(self, energies: NDArray[np.floating]) -> NDArray[np.float64]:
        """Share of calibration images with a lower energy, (B, T): near 1 is too hard for a level, near 0 too easy."""
        logs = log_energies(energies).astype(np.float32)  # as the known ones are
        levels = zip(self.log_energies, logs.T, strict=True)
        below = np.stack([np.searchsorted(known, values, side="left") for known, values in levels], 1)
        shares: NDArray[np.float64] = below / self.log_energies.shape[1]
        return shares

    def heat(self, energy_map: NDArray[np.floating]) -> NDArray[np.float64]:
        """Energy maps (T, H, W) of one image -> (H, W): smoothed standard deviations of a pixel over held-out images.

        A pixel takes the level that finds it least likely.
        """
        return _smooth(self.pixels.standardise(energy_map).max(0))


def fit_explainer(log_energies: NDArray[np.floating], pixels: Pixels) -> Explainer:
    """From log energies (n, T) of calibration images, and what the reference images' pixels are like."""
    return Explainer(np.sort(log_energies.T.astype(np.float32), axis=1), pixels)


def log_energies(energies: NDArray[np.floating]) -> NDArray[np.float64]:
    """Near a Gaussian, where energies, sums over pixels, have a long right tail.

    In float64: the logarithm of a late level varies by less than 0.01 and features explain nearly all of it, so that
    a score would see what a logarithm in float32 is rounded by.
    """
    logs: NDArray[np.float64] = np.log(np.maximum(energies.astype(np.float64), 1e-12))
    return logs


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian blur of (H, W), mirrored at the edges."""
    for axis, side in enumerate(values.shape):
        sigma = max(_SMOOTHING * side, 0.5)
        reach = min(int(3 * sigma) + 1, side - 1)
        offsets = np.arange(-reach, reach + 1)
        weights = np.exp(-0.5 * (offsets / sigma) ** 2)
        padded = np.pad(values, [(reach, reach) if a == axis else (0, 0) for a in range(2)], mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis)
        values = windows @ (weights / weights.sum())
    return values
