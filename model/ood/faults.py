"""Faults painted on ordinary images, to tell what a gate would catch: uint8 (N, H, W, C) -> the same shape.

Lengths are shares of the shorter side, so that a severity means the same at any size. Grey levels are of 255.
"""

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Images = NDArray[np.uint8]
Paint = Callable[[Images, float, np.random.Generator], Images]


class Fault(NamedTuple):
    name: str
    unit: str  # what a severity measures
    paint: Paint
    severities: tuple[float, ...]


def scratch(images: Images, length: float, rng: np.random.Generator) -> Images:
    """A straight line, a 20th of the side wide, black, or white in a dark image."""
    side = min(images.shape[1:3])
    y, x = _random_places(images, rng)
    angle = rng.uniform(0, np.pi, y.shape)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    line = np.maximum(np.abs(along) - length * side / 2, 0) + np.abs(across)
    return _painted(images, np.clip(max(side / 40, 0.5) + 0.5 - line, 0, 1), _contrasting(images))


def hole(images: Images, diameter: float, rng: np.random.Generator) -> Images:
    """A black disc, or a white one in a dark image."""
    y, x = _random_places(images, rng)
    radius = diameter * min(images.shape[1:3]) / 2
    return _painted(images, np.clip(radius + 0.5 - np.hypot(y, x), 0, 1), _contrasting(images))


def stain(images: Images, strength: float, rng: np.random.Generator) -> Images:
    """A soft spot, a quarter of the side wide, darker or brighter by `strength` grey levels in its middle."""
    y, x = _random_places(images, rng)
    spot = np.exp(-(np.square(y) + np.square(x)) / (2 * (min(images.shape[1:3]) / 8) ** 2))
    sign = rng.choice([-1.0, 1.0], (len(images), 1, 1, 1))
    return to_pixels(images + sign * strength * spot[..., None])


def dead_lines(images: Images, count: float, rng: np.random.Generator) -> Images:
    """Rows of a sensor that read black, or white in a dark image."""
    damaged = images.copy()
    for image, reading in zip(damaged, _contrasting(images), strict=True):
        image[rng.choice(len(image), min(int(count), len(image)), replace=False)] = reading
    return damaged


def noise(images: Images, std: float, rng: np.random.Generator) -> Images:
    return to_pixels(images + rng.normal(0, std, images.shape))


def blur(images: Images, radius: float, rng: np.random.Generator) -> Images:
    blurred = ImageFilter.GaussianBlur(radius * min(images.shape[1:3]))
    return _by_pillow(images, lambda picture: picture.filter(blurred))


def wrong_crop(images: Images, zoom: float, rng: np.random.Generator) -> Images:
    """A random part of the image, enlarged to its size."""
    height, width = images.shape[1:3]
    size = round(height / zoom), round(width / zoom)

    def crop(picture: Image.Image) -> Image.Image:
        top, left = (int(rng.integers(0, whole - part + 1)) for whole, part in zip((height, width), size, strict=True))
        part = picture.crop((left, top, left + size[1], top + size[0]))
        return part.resize((width, height), Image.Resampling.BICUBIC)

    return _by_pillow(images, crop)


def wrong_colour(images: Images, gain: float, rng: np.random.Generator) -> Images:
    """Grey images: brightness times `gain`. Colour images: red times `gain`, blue divided by it."""
    factors = np.array([gain, 1, 1 / gain]) if images.shape[3] == 3 else np.array([gain])
    return to_pixels(images * factors)


def compression(images: Images, quality: float, rng: np.random.Generator) -> Images:
    """JPEG of low quality."""

    def compress(picture: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(quality))
        with Image.open(buffer, formats=["JPEG"]) as opened:
            opened.load()
            return opened

    return _by_pillow(images, compress)


FAULTS = (
    Fault("scratch", "length / side", scratch, (0.2, 0.5)),
    Fault("hole", "diameter / side", hole, (0.08, 0.16)),
    Fault("stain", "grey levels", stain, (30, 60)),
    Fault("dead lines", "rows", dead_lines, (1, 3)),
    Fault("noise", "std, grey levels", noise, (8, 16)),
    Fault("blur", "radius / side", blur, (0.02, 0.04)),
    Fault("wrong crop", "zoom", wrong_crop, (1.25, 1.6)),
    Fault("wrong colour", "gain", wrong_colour, (1.2, 1.4)),
    Fault("compression", "JPEG quality", compression, (20, 8)),
)


def to_pixels(values: NDArray[Any]) -> Images:
    pixels: Images = np.clip(np.round(values), 0, 255).astype(np.uint8)
    return pixels


def _random_places(images: Images, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each pixel's distance along both axes from a random place in the inner 70 % of its image, each (N, H, W)."""
    count, height, width, _ = images.shape
    y, x = (rng.uniform(0.15, 0.85, (count, 1, 1)) * (side - 1) for side in (height, width))
    grid = np.mgrid[:height, :width]
    return grid[0] - y, grid[1] - x


def _contrasting(images: Images) -> NDArray[np.float64]:
    """Black where an image is brighter than the middle, else white, (N, 1, 1, 1)."""
    return np.where(images.mean((1, 2, 3), keepdims=True) > 127.5, 0.0, 255.0)


def _painted(images: Images, cover: NDArray[np.float64], colour: NDArray[np.float64]) -> Images:
    return to_pixels(images * (1 - cover[..., None]) + colour * cover[..., None])


def _by_pillow(images: Images, change: Callable[[Image.Image], Image.Image]) -> Images:
    pictures = (Image.fromarray(image[..., 0] if image.shape[2] == 1 else image) for image in images)
    return np.stack([np.asarray(change(picture)) for picture in pictures]).reshape(images.shape)
