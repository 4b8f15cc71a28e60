"""Transforms on which the form of the score is chosen, and which no report has.

The first thirteen are those that docs/ood.md names; the last four are of local faults, added to look for what tells
single bad pixels, without salt and pepper themselves, which is reported.
"""

import io

import numpy as np
from PIL import Image

from benchmarks.ood.sets import Images, Transform, to_pixels


def grey_square(images: Images, rng: np.random.Generator) -> Images:
    """A square of a third of the side, mid-grey, anywhere."""
    size = images.shape[1] // 3
    shown = images.copy()
    for image, (top, left) in zip(shown, rng.integers(0, images.shape[1] - size + 1, (len(images), 2)), strict=True):
        image[top : top + size, left : left + size] = 128
    return shown


def mixed(images: Images, rng: np.random.Generator) -> Images:
    return to_pixels((images.astype(np.float64) + np.roll(images, 1, 0)) / 2)


def jpeg(images: Images, rng: np.random.Generator) -> Images:
    """Quality 5."""
    shown = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, "JPEG", quality=5)
        shown.append(np.asarray(Image.open(file)).reshape(image.shape))
    return np.stack(shown)


def half_resolution(images: Images, rng: np.random.Generator) -> Images:
    small = images[:, ::2, ::2].astype(np.float64) + images[:, 1::2, ::2] + images[:, ::2, 1::2] + images[:, 1::2, 1::2]
    return to_pixels(small / 4).repeat(2, 1).repeat(2, 2)


def bars(images: Images, rng: np.random.Generator) -> Images:
    """Three white columns of one pixel."""
    shown = images.copy()
    for image in shown:
        image[:, rng.choice(images.shape[2], 3, replace=False)] = 255
    return shown


def edges(images: Images, rng: np.random.Generator) -> Images:
    """Twice the length of the gradient."""
    slopes = np.gradient(images.astype(np.float64), axis=(1, 2))
    return to_pixels(2 * np.hypot(*slopes))


def impulses(images: Images, rng: np.random.Generator) -> Images:
    """3 % of the pixels of any grey or colour."""
    hit = rng.random((*images.shape[:3], 1)) < 0.03
    return np.where(hit, rng.integers(0, 256, images.shape), images).astype(np.uint8)


def halves(images: Images, rng: np.random.Generator) -> Images:
    shown = images.copy()
    shown[:, :, images.shape[2] // 2 :] = np.roll(images, 1, 0)[:, :, images.shape[2] // 2 :]
    return shown


def dead_lines(images: Images, rng: np.random.Generator) -> Images:
    """Two rows of one grey, as of a broken sensor."""
    shown = images.copy()
    for image in shown:
        image[rng.choice(images.shape[1], 2, replace=False)] = rng.integers(0, 256, (2, 1, 1))
    return shown


def grey_dots(images: Images, rng: np.random.Generator) -> Images:
    """2 % of the pixels mid-grey."""
    return np.where(rng.random((*images.shape[:3], 1)) < 0.02, 128, images).astype(np.uint8)


def scratch(images: Images, rng: np.random.Generator) -> Images:
    """A light line of one pixel from the upper edge to the lower."""
    shown, side = images.copy(), images.shape[1]
    for image, (start, end) in zip(shown, rng.uniform(0, side - 1, (len(images), 2)), strict=True):
        image[np.arange(side), np.linspace(start, end, side).round().astype(int)] = 220
    return shown


def copied_patch(images: Images, rng: np.random.Generator) -> Images:
    """A square of a quarter of the side at another place of the same image."""
    shown, size = images.copy(), images.shape[1] // 4
    places = rng.integers(0, images.shape[1] - size + 1, (len(images), 4))
    for image, old, (a, b, top, left) in zip(shown, images, places, strict=True):
        image[top : top + size, left : left + size] = old[a : a + size, b : b + size]
    return shown


CHOICE: dict[str, Transform] = {
    "rolled by a quarter": lambda images, rng: np.roll(images, images.shape[1] // 4, 1),
    "contrast 0.4": lambda images, rng: to_pixels(127.5 + 0.4 * (images - 127.5)),
    "grey square": grey_square,
    "two mixed": mixed,
    "noise, std 20": lambda images, rng: to_pixels(images + rng.normal(0, 20, images.shape)),
    "JPEG, quality 5": jpeg,
    "half the resolution": half_resolution,
    "transposed": lambda images, rng: images.transpose(0, 2, 1, 3).copy(),
    "bars": bars,
    "gamma 3": lambda images, rng: to_pixels(255 * (images / 255.0) ** 3),
    "edges": edges,
    "impulses, 3 %": impulses,
    "left and right of two": halves,
    "dead lines": dead_lines,
    "grey dots, 2 %": grey_dots,
    "scratch": scratch,
    "copied patch": copied_patch,
}
