"""Strange images of stated severity, made of ordinary ones: uint8 (N, H, W, C), H = W and a multiple of 4."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter, map_coordinates

Images = NDArray[np.uint8]
Transform = Callable[[Images, np.random.Generator], Images]


def gaussian_noise(images: Images, rng: np.random.Generator) -> Images:
    return to_pixels(rng.normal(127.5, 64, images.shape))


def uniform_noise(images: Images, rng: np.random.Generator) -> Images:
    return rng.integers(0, 256, images.shape, dtype=np.uint8)


def constant(images: Images, rng: np.random.Generator) -> Images:
    colours = rng.integers(0, 256, (len(images), 1, 1, images.shape[3]), dtype=np.uint8)
    return np.broadcast_to(colours, images.shape).copy()


def patches_shuffled(images: Images, rng: np.random.Generator) -> Images:
    """Sixteen squares of each image in random order."""
    count, side, _, channels = images.shape
    cut = images.reshape(count, 4, side // 4, 4, side // 4, channels).transpose(0, 1, 3, 2, 4, 5)
    order = rng.permuted(np.tile(np.arange(16), (count, 1)), axis=1)
    pieces = cut.reshape(count, 16, *cut.shape[3:])[np.arange(count)[:, None], order]
    shuffled: Images = pieces.reshape(cut.shape).transpose(0, 1, 3, 2, 4, 5).reshape(images.shape)
    return shuffled


def salt_and_pepper(images: Images, rng: np.random.Generator) -> Images:
    """A tenth of the pixels black or white."""
    places = (*images.shape[:3], 1)
    return np.where(rng.random(places) < 0.1, rng.choice([0, 255], places), images).astype(np.uint8)


def blurred(images: Images, rng: np.random.Generator) -> Images:
    pictures = [Image.fromarray(image[..., 0] if image.shape[2] == 1 else image) for image in images]
    return np.stack([np.asarray(p.filter(ImageFilter.GaussianBlur(2))) for p in pictures]).reshape(images.shape)


# Sets reported from the start. We looked at some of them while designing the score (docs/ood.md).
REPORTED: dict[str, Transform] = {
    "Gaussian noise": gaussian_noise,
    "uniform noise": uniform_noise,
    "constant": constant,
    "inverted": lambda images, rng: 255 - images,
    "patches shuffled": patches_shuffled,
    "salt and pepper, 10 %": salt_and_pepper,
    "flipped, top to bottom": lambda images, rng: images[:, ::-1].copy(),
    "turned by 90°": lambda images, rng: np.rot90(images, axes=(1, 2)).copy(),
    "blurred, radius 2": blurred,
}


def sheared(images: Images, rng: np.random.Generator) -> Images:
    """Each row moved sideways by 0.4 of its distance from the middle: another outline, no new texture."""
    y, x = _grid(images)
    return _resampled(images, y, x + 0.4 * (y - y.mean()))


def warped(images: Images, rng: np.random.Generator) -> Images:
    """Smooth random displacements of 2.5 pixels, root mean square: bent shapes, as Simard et al. 2003 made digits."""
    fields = 2.5 * _smooth_fields((len(images), *images.shape[1:3], 2), images.shape[1] / 8, rng)
    y, x = _grid(images)
    return np.concatenate([
        _resampled(image[None], y + field[..., 0], x + field[..., 1])
        for image, field in zip(images, fields, strict=True)
    ])  # fmt: skip


def checkerboard(images: Images, rng: np.random.Generator) -> Images:
    """16 grey levels up and down from pixel to pixel: the highest frequency that there is, everywhere and faint."""
    y, x = _grid(images)
    return to_pixels(images + np.where((y + x) % 2, 16.0, -16.0)[None, :, :, None])


def smooth_noise(images: Images, rng: np.random.Generator) -> Images:
    """A random field smoothed over an eighth of the side, from black to white: smooth as clouds, and no object."""
    fields = _smooth_fields(images.shape, images.shape[1] / 8, rng)
    low, high = fields.min((1, 2), keepdims=True), fields.max((1, 2), keepdims=True)
    return to_pixels(255 * (fields - low) / (high - low))


def framed(images: Images, rng: np.random.Generator) -> Images:
    """Four pixels of one random grey along each edge: an artefact beside what is known."""
    shown = np.broadcast_to(rng.integers(0, 256, (len(images), 1, 1, 1), dtype=np.uint8), images.shape).copy()
    shown[:, 4:-4, 4:-4] = images[:, 4:-4, 4:-4]
    return shown


def mirrored(images: Images, rng: np.random.Generator) -> Images:
    """The upper half, and below it its mirror image: right parts, a symmetry that should not be."""
    upper = images[:, : images.shape[1] // 2]
    return np.concatenate([upper, upper[:, ::-1]], 1)


def phases_scrambled(images: Images, rng: np.random.Generator) -> Images:
    """The amplitudes of the image's spectrum with the phases of noise: right in second moments alone."""
    noise = np.fft.rfft2(rng.standard_normal(images.shape[:3]), axes=(1, 2))
    phases = np.exp(1j * np.angle(noise))[..., None]
    phases[:, 0, 0] = 1  # the mean grey stays
    spectrum = np.abs(np.fft.rfft2(images.astype(np.float64), axes=(1, 2)))
    return to_pixels(np.fft.irfft2(spectrum * phases, s=images.shape[1:3], axes=(1, 2)))


def four_of_it(images: Images, rng: np.random.Generator) -> Images:
    """The image at half its size, four times: right parts at a wrong scale and number."""
    count, side, _, channels = images.shape
    small = images.reshape(count, side // 2, 2, side // 2, 2, channels).mean((2, 4))
    return to_pixels(np.tile(small, (1, 2, 2, 1)))


# Declared before anything was measured on them, and not used to design the score.
UNSEEN: dict[str, Transform] = {
    "sheared by 0.4": sheared,
    "warped, 2.5 pixels": warped,
    "checkerboard, ±16": checkerboard,
    "smooth noise": smooth_noise,
    "framed, 4 pixels": framed,
    "lower half mirrored": mirrored,
    "phases scrambled": phases_scrambled,
    "four of it": four_of_it,
}


def mosaic(images: Images, rng: np.random.Generator) -> Images:
    """Squares of four pixels, each of its mean colour."""
    count, side, _, channels = images.shape
    small = images.reshape(count, side // 4, 4, side // 4, 4, channels).mean((2, 4))
    return to_pixels(small.repeat(4, 1).repeat(4, 2))


def posterised(images: Images, rng: np.random.Generator) -> Images:
    """Four grey levels a channel."""
    return to_pixels(np.round(images / 85.0) * 85)


def vignette(images: Images, rng: np.random.Generator) -> Images:
    """Darker towards the corners, which keep a fifth of their brightness."""
    y, x = _grid(images)
    distance = np.hypot(y - y.mean(), x - x.mean())
    return to_pixels(images * (1 - 0.8 * (distance / distance.max()) ** 2)[:, :, None])


def printed_code(images: Images, rng: np.random.Generator) -> Images:
    """A square code in one corner: four by four random modules of two pixels, black or white."""
    shown = images.copy()
    modules = rng.choice(np.array([0, 255], np.uint8), (len(images), 4, 4, 1)).repeat(2, 1).repeat(2, 2)
    shown[:, -9:-1, -9:-1] = modules
    return shown


def moved(images: Images, rng: np.random.Generator) -> Images:
    """Blurred along the rows over seven pixels, as by a moving camera."""
    padded = np.pad(images.astype(np.float64), [(0, 0), (0, 0), (3, 3), (0, 0)], mode="edge")
    return to_pixels(np.lib.stride_tricks.sliding_window_view(padded, 7, axis=2).mean(-1))


def ghost(images: Images, rng: np.random.Generator) -> Images:
    """Exposed twice: the mean of the image and itself three pixels to the right."""
    return to_pixels((images.astype(np.float64) + np.roll(images, 3, 2)) / 2)


def swirled(images: Images, rng: np.random.Generator) -> Images:
    """Turned by a right angle in the middle, and less the farther out."""
    y, x = _grid(images)
    dy, dx = y - y.mean(), x - x.mean()
    angle = np.pi / 2 * np.exp(-np.hypot(dy, dx) / (len(y) / 4))
    sine, cosine = np.sin(angle), np.cos(angle)
    return _resampled(images, y.mean() + cosine * dy + sine * dx, x.mean() + cosine * dx - sine * dy)


def dithered(images: Images, rng: np.random.Generator) -> Images:
    """Black or white alone in each channel, by an ordered 4×4 pattern, as on a printed page."""
    order = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])
    limit = np.tile((order + 0.5) * 16, (images.shape[1] // 4, images.shape[2] // 4))[:, :, None]
    return np.where(images > limit, 255, 0).astype(np.uint8)


# Declared before anything was measured on them, after those above had been looked at for the second form of the score.
LATER: dict[str, Transform] = {
    "mosaic of 4 pixels": mosaic,
    "four grey levels": posterised,
    "vignette": vignette,
    "printed code": printed_code,
    "moved by 7 pixels": moved,
    "exposed twice": ghost,
    "swirled": swirled,
    "dithered": dithered,
}


def make_sets(images: Images, transforms: dict[str, Transform], seed: int = 0) -> dict[str, Images]:
    """Each transform of `images`, with random numbers of its own: a set does not depend on which others are made."""
    return {name: make(images, np.random.default_rng([seed, *name.encode()])) for name, make in transforms.items()}


def to_pixels(values: NDArray[Any]) -> Images:
    pixels: Images = np.clip(np.round(values), 0, 255).astype(np.uint8)
    return pixels


def _grid(images: Images) -> NDArray[np.float64]:
    """Row and column of each pixel, (2, H, W)."""
    return np.mgrid[: images.shape[1], : images.shape[2]].astype(np.float64)


def _resampled(images: Images, y: NDArray[np.float64], x: NDArray[np.float64]) -> Images:
    """Images with the pixel that was at (y, x), bilinear, edges repeated."""
    flat = images.transpose(0, 3, 1, 2).reshape(-1, *images.shape[1:3]).astype(np.float64)
    moved = np.stack([map_coordinates(plane, (y, x), order=1, mode="nearest") for plane in flat])
    return to_pixels(moved.reshape(len(images), images.shape[3], *y.shape).transpose(0, 2, 3, 1))


def _smooth_fields(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Gaussian noise (N, H, W, K), smoothed over H and W, of mean 0 and variance 1 an image and channel."""
    fields = gaussian_filter(rng.standard_normal(shape), (0, sigma, sigma, 0), mode="wrap")
    fields -= fields.mean((1, 2), keepdims=True)
    scaled: NDArray[np.float64] = fields / fields.std((1, 2), keepdims=True)
    return scaled
