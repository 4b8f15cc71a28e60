"""The strange regions of an image: boxes around hot places, each with its own strength."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.ood.spots import around_hottest, box_of

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

    A region holds connected places whose heat is at least `LEAST`.
    """
    scale, rest = height // len(heat), heat.copy()
    found: list[Region] = []
    while len(found) < MOST and (strength := float(rest.max())) >= LEAST:
        region = around_hottest(rest, LEAST)
        left, top, width, tall = (side * scale for side in box_of(region))
        found.append(Region(left, top, width, tall, strength))
        rest[region] = 0
    return found
