"""uint8 arrays -> PNG, one image or a grid, with a heatmap over it."""

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Black-body colours from nothing to hot, evenly spaced.
_COLOURS = np.array([(0, 0, 0), (120, 0, 20), (230, 60, 0), (255, 180, 0), (255, 255, 200)], dtype=np.float64)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """uint8 (H, W, C) -> PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_grid(images: NDArray[np.uint8], columns: int | None = None, gap: int = 2) -> NDArray[np.uint8]:
    """uint8 (B, H, W, C) -> one image of rows and columns, white gaps, empty places black."""
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, dtype=np.uint8)
    for i in range(rows * columns):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        grid[top : top + height, left : left + width] = images[i] if i < count else 0
    return grid


def overlay(
    pixels: NDArray[np.uint8], heat: NDArray[np.float64], start: float = 1.0, full: float = 4.0
) -> NDArray[np.uint8]:
    """The image (H, W, C) in dim grey under its heat: uint8 RGB (H, W, 3).

    Heat has no colour up to `start`, which ordinary images seldom pass, and the hottest from `full` on.
    """
    grey = pixels.mean(2, keepdims=True)
    strength = np.clip((heat - start) / (full - start), 0, 1)[..., None]  # (H, W, 1)
    places = np.linspace(0, 1, len(_COLOURS))
    colour = np.stack([np.interp(strength[..., 0], places, _COLOURS[:, c]) for c in range(3)], -1)
    mixed: NDArray[np.uint8] = ((1 - strength) * grey * 0.7 + strength * colour).round().astype(np.uint8)
    return mixed
