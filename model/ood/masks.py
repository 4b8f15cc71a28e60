"""Masks: the places of an image that count, by a region for all images and by the opacity of each."""

import numpy as np
from numpy.typing import NDArray


def colour_of(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images (..., C), C 1 or 3, without the opacity that masked ones have as their last channel."""
    return images[..., :-1] if images.shape[-1] in (2, 4) else images


def masked(images: NDArray[np.uint8], region: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Images (B, H, W, C) that are black outside of `region` (h, w), and the places that count, (B, h, w).

    The images may have an opacity as their last channel. A place counts if it is in the region and wholly opaque.
    """
    (height, width), (rows, columns) = images.shape[1:3], region.shape
    counts = np.broadcast_to(region > 0, (len(images), rows, columns))
    colour = colour_of(images)
    if colour.shape != images.shape:
        opacity = images[..., -1].reshape(-1, rows, height // rows, columns, width // columns)
        counts = counts & (opacity.min((2, 4)) == 255)
    if not region.all():
        colour = colour * region.astype(np.uint8).repeat(height // rows, 0).repeat(width // columns, 1)[..., None]
    return np.ascontiguousarray(colour), counts


def without(places: NDArray[np.float16], counts: NDArray[np.bool_]) -> NDArray[np.float16]:
    """Vectors (B, h, w, R), NaN at places that do not count, which have no heat."""
    places[~counts] = np.nan
    return places
