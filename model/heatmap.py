"""Where an image's energy sits: per-pixel shares, smoothed, as an overlay for people.

The energy is a sum over pixels, E_k = Σ_p E_k(p), so each level says which pixels it finds unlikely.
"""

import numpy as np
from numpy.typing import NDArray

_SMOOTHING = 0.07  # std of the Gaussian, in image sides: a level's map alternates from pixel to pixel
# Black-body colours from nothing to hot, evenly spaced.
_COLOURS = np.array([(0, 0, 0), (120, 0, 20), (230, 60, 0), (255, 180, 0), (255, 255, 200)], dtype=np.float64)


def heat(energy_map: NDArray[np.floating]) -> NDArray[np.float64]:
    """Energy maps (T, H, W) of one image -> (H, W) in standard deviations above the image's mean pixel.

    Each level is standardised within the image, since levels differ in scale; a pixel takes the level that
    finds it least likely.
    """
    maps = energy_map.astype(np.float64)
    centred = maps - maps.mean((1, 2), keepdims=True)
    z = centred / np.maximum(centred.std((1, 2), keepdims=True), 1e-12)
    return _smooth(z.max(0))


def overlay(pixels: NDArray[np.uint8], heat: NDArray[np.float64], full: float = 3.0) -> NDArray[np.uint8]:
    """The image (H, W, C) in dim grey under its heat: uint8 RGB (H, W, 3); `full` and above is the hottest colour."""
    grey = pixels.mean(2, keepdims=True)
    strength = np.clip(heat / full, 0, 1)[..., None]  # (H, W, 1)
    places = np.linspace(0, 1, len(_COLOURS))
    colour = np.stack([np.interp(strength[..., 0], places, _COLOURS[:, c]) for c in range(3)], -1)
    mixed: NDArray[np.uint8] = ((1 - strength) * grey * 0.7 + strength * colour).round().astype(np.uint8)
    return mixed


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
