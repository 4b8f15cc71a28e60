"""Faults of 4 to 40 pixels painted on large pictures: hole, scratch, stain, smear and foreign patch.

They were written, and committed, before any score was measured on them. `ddaebm fit` has faults of its own
(`model/ood/faults.py`), with other shapes and severities.
"""

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage import data
from skimage.transform import resize

Images = NDArray[np.uint8]  # (N, H, W)
Floats = NDArray[np.float64]

SIZES = (4, 8, 12, 20, 40)  # pixels
SEVERITIES = {"faint": 0.35, "middle": 0.6, "strong": 0.9}  # share of the fault in the colour of what it covers
_WIDTH = 2.0  # of a scratch, pixels


@functools.cache
def _coins(shape: tuple[int, int]) -> Floats:
    pixels: Floats = resize(data.coins(), shape, preserve_range=True, anti_aliasing=True)  # type: ignore[no-untyped-call]
    return pixels


def hole(y: Floats, x: Floats, size: float, image: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """A dark disc, `size` across."""
    return np.full_like(image, 20), np.clip(size / 2 + 0.5 - np.hypot(y, x), 0, 1)


def scratch(y: Floats, x: Floats, size: float, image: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """A bright straight line, `size` long and two pixels wide, in any direction."""
    angle = rng.uniform(0, np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    cover = np.clip(size / 2 + 0.5 - np.abs(along), 0, 1) * np.clip(_WIDTH / 2 + 0.5 - np.abs(across), 0, 1)
    return np.full_like(image, 240), cover


def stain(y: Floats, x: Floats, size: float, image: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """A soft spot whose width at half its height is `size`, up to 80 grey levels brighter or darker."""
    return image + 80 * rng.choice([-1.0, 1.0]), np.exp(-np.log(2) * np.square(np.hypot(y, x) / (size / 2)))


def smear(y: Floats, x: Floats, size: float, image: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """A disc, `size` across, out of focus."""
    return gaussian_filter(image, 3, mode="reflect"), np.clip(size / 2 + 0.5 - np.hypot(y, x), 0, 1)


def patch(y: Floats, x: Floats, size: float, image: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """A square, `size` across, of scikit-image's photograph of coins: another material."""
    turned: Floats = np.roll(_coins(image.shape), rng.integers(0, image.shape[0], 2), (0, 1))
    return turned, np.clip(size / 2 + 0.5 - np.maximum(np.abs(y), np.abs(x)), 0, 1)


FAULTS: dict[str, Callable[[Floats, Floats, float, Floats, np.random.Generator], tuple[Floats, Floats]]] = {
    "hole": hole, "scratch": scratch, "stain": stain, "smear": smear, "foreign patch": patch,
}  # fmt: skip


def paint(images: Images, fault: str, size: float, severity: str) -> tuple[Images, NDArray[np.bool_]]:
    """Pictures with one fault each, wholly inside, and its pixels (N, H, W)."""
    painted, masks = np.empty_like(images), np.empty(images.shape, bool)
    for i, image in enumerate(images):
        rng = np.random.default_rng([i, int(size), *fault.encode(), *severity.encode()])
        top, left = (rng.uniform(size / 2 + 1, side - size / 2 - 2) for side in image.shape)
        y, x = np.arange(image.shape[0])[:, None] - top, np.arange(image.shape[1])[None] - left
        colour, cover = FAULTS[fault](y, x, size, image.astype(np.float64), rng)
        share = cover * SEVERITIES[severity]
        painted[i] = np.clip(np.round(image * (1 - share) + colour * share), 0, 255)
        masks[i] = cover >= 0.5
    return painted, masks
