"""The strange regions of an image: boxes around hot places, each with its own strength."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.ood.spots import boxes

MOST = 5  # regions of an image
LEAST = 1.0  # heat of a region's hottest place: that of the hottest place of an ordinary image, at the median


class Region(NamedTuple):
    """A box in pixels of the image as it is scored."""

    left: int
    top: int
    width: int
    height: int
    strength: float  # heat of its hottest place

    @property
    def box(self) -> list[int]:
        """Left, top, width and height."""
        return list(self[:4])


def regions(heat: NDArray[np.float64], height: int) -> list[Region]:
    """The regions of one image, the strongest first: heat (h, w) of an image of `height` pixels.

    Around the hottest place lie the connected places that have at least half of its heat. They are one region, and the
    next one is looked for in the rest.
    """
    scale, left_over = height // len(heat), heat.copy()
    found: list[Region] = []
    while len(found) < MOST and left_over.max() >= LEAST:
        left, top, width, tall = (int(side) for side in boxes(left_over[None])[0])
        strength = float(left_over.max())
        found.append(Region(left * scale, top * scale, width * scale, tall * scale, strength))
        left_over[top : top + tall, left : left + width] = 0
    return found
