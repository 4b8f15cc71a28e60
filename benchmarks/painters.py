"""Faults painted on pictures of surfaces: hole, scratch, stain and blur, at three severities.

They were written, and committed, before any score was measured on them. `ddaebm fit` has faults of its own
(`model/ood/faults.py`), with other shapes and severities.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Images = NDArray[np.uint8]  # (N, H, W)
Painter = Callable[[Images, float, np.random.Generator], Images]


def hole(images: Images, radius: float, rng: np.random.Generator) -> Images:
    """A dark disc of `radius` pixels with an edge one pixel wide, wholly inside."""
    y, x = _centres(images, radius + 1, rng)
    cover = np.clip(radius + 0.5 - np.hypot(*_offsets(images, y, x)), 0, 1)
    return _pixels(images * (1 - cover) + 20 * cover)


def scratch(images: Images, length: float, rng: np.random.Generator) -> Images:
    """A bright straight line, `length` pixels long and about one wide, in any direction."""
    y, x = _centres(images, 3, rng)
    angle = rng.uniform(0, np.pi, (len(images), 1, 1))
    dy, dx = _offsets(images, y, x)
    along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    cover = np.clip(length / 2 + 0.5 - np.abs(along), 0, 1) * np.clip(1 - np.abs(across), 0, 1)
    return _pixels(images * (1 - cover) + 240 * cover)


def stain(images: Images, strength: float, rng: np.random.Generator) -> Images:
    """A soft spot, a quarter of the side wide, `strength` grey levels brighter or darker in its middle."""
    width = images.shape[1] / 8
    y, x = _centres(images, width, rng)
    sign = rng.choice([-1.0, 1.0], (len(images), 1, 1))
    return _pixels(images + sign * strength * np.exp(-(np.hypot(*_offsets(images, y, x)) ** 2) / (2 * width**2)))


def blur(images: Images, sigma: float, rng: np.random.Generator) -> Images:
    """The whole picture out of focus: a Gaussian of `sigma` pixels."""
    return _pixels(gaussian_filter(images.astype(np.float64), (0, sigma, sigma), mode="reflect"))


# Faint, middle and strong.
FAULTS: dict[str, tuple[Painter, tuple[float, float, float]]] = {
    "hole": (hole, (0.8, 1.5, 2.5)),
    "scratch": (scratch, (5, 9, 15)),
    "stain": (stain, (25, 45, 70)),
    "blur": (blur, (0.5, 0.75, 1.1)),
}


def _centres(images: Images, margin: float, rng: np.random.Generator) -> tuple[NDArray[np.float64], ...]:
    """Random rows and columns, each (N, 1, 1), at least `margin` from the edges."""
    count, height, width = images.shape
    return tuple(rng.uniform(margin, side - 1 - margin, (count, 1, 1)) for side in (height, width))


def _offsets(images: Images, y: NDArray[np.float64], x: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Each pixel's distance from the centre along both axes, (N, H, 1) and (N, 1, W)."""
    _, height, width = images.shape
    return np.arange(height)[:, None] - y, np.arange(width) - x


def _pixels(values: NDArray[np.float64]) -> Images:
    pixels: Images = np.clip(np.round(values), 0, 255).astype(np.uint8)
    return pixels
