"""Encode uint8 arrays as PNG, arrange images in a grid, and draw a heatmap over an image."""

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

# Black-body colours from cold to hot, evenly spaced.
_COLOURS = np.array([(0, 0, 0), (120, 0, 20), (230, 60, 0), (255, 180, 0), (255, 255, 200)], dtype=np.float64)
_FRAME = (0, 255, 255)  # no colour of heat


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode uint8 (H, W, C) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_grid(images: NDArray[np.uint8], columns: int | None = None, gap: int = 2) -> NDArray[np.uint8]:
    """Arrange images (B, H, W, C) in one image of rows and columns, with white gaps and black empty cells."""
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, dtype=np.uint8)
    for i in range(rows * columns):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        grid[top : top + height, left : left + width] = images[i] if i < count else 0
    return grid


def outline(pixels: NDArray[np.uint8], boxes: Sequence[Sequence[int]]) -> NDArray[np.uint8]:
    """Draw boxes (left, top, width, height) on an RGB image (H, W, 3)."""
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    for left, top, width, height in boxes:
        draw.rectangle((left, top, left + width - 1, top + height - 1), outline=_FRAME)
    return np.asarray(image)


def enlarge(heat: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Bring heat (h, w) to (H, W) = `shape` by bilinear interpolation."""
    if heat.shape == shape:
        return heat
    values = Image.fromarray(heat.astype(np.float32)).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(values, np.float64)


def overlay(
    pixels: NDArray[np.uint8], heat: NDArray[np.float64], start: float = 1.0, full: float = 4.0
) -> NDArray[np.uint8]:
    """Draw heat (h, w), enlarged, over an image (H, W, C) in dimmed grey; returns uint8 RGB (H, W, 3).

    Args:
        start: Largest heat without a colour; ordinary images rarely exceed it.
        full: Smallest heat with the hottest colour.
    """
    grey = pixels.mean(2, keepdims=True)
    strength = np.clip((enlarge(heat, pixels.shape[:2]) - start) / (full - start), 0, 1)[..., None]  # (H, W, 1)
    places = np.linspace(0, 1, len(_COLOURS))
    colour = np.stack([np.interp(strength[..., 0], places, _COLOURS[:, c]) for c in range(3)], -1)
    mixed: NDArray[np.uint8] = ((1 - strength) * grey * 0.7 + strength * colour).round().astype(np.uint8)
    return mixed
