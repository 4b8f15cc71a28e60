"""Data sets in memory: synthetic or read from files, split in a fixed way, and served in batches.

The batch of a step depends only on (seed, step). So a resumed run sees the same batches as an uninterrupted one.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import make_swiss_roll
from torch import Tensor

from ddaebm.model.config import ModelConfig
from ddaebm.model.errors import DataError
from ddaebm.model.images.arrays import to_unit
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.decode import MAX_PIXELS
from ddaebm.model.images.readers import read_named
from ddaebm.model.noise import permutation, random_word
from ddaebm.training.config import TrainConfig

PARTS = ("train", "reference", "choice", "calibration")
SPLIT_SEED = 20_240_302  # never change it: that would move images between training and calibration


@dataclass(frozen=True)
class Splits:
    """Disjoint parts of one training set. The networks are trained on `train` only.

    A fifth is held out. For 60,000 images these are 4,000 for `reference` (standardisation), 3,000 for `choice`
    (selecting the form of the score) and 5,000 for `calibration` (conformal p-values; no other choice may use them).
    """

    train: NDArray[Any]
    reference: NDArray[Any]
    choice: NDArray[Any]
    calibration: NDArray[Any]

    @property
    def held_out(self) -> NDArray[Any]:
        """All samples that the networks are not trained on."""
        return np.concatenate([self.reference, self.choice, self.calibration])

    def take(self, data: NDArray[Any]) -> Self:
        """The parts of `data` (N, ...), where these parts are indices (N,)."""
        return type(self)(*(data[getattr(self, part)] for part in PARTS))

    def digests(self) -> dict[str, dict[str, Any]]:
        """Size of each part and the sha256 of its bytes, by name."""
        parts = {name: getattr(self, name) for name in PARTS}
        return {
            name: {"count": len(part), "sha256": hashlib.sha256(part.tobytes()).hexdigest()}
            for name, part in parts.items()
        }


def split(data: NDArray[Any]) -> Splits:
    """Hold out a fifth of `data` (N, ...) by a fixed permutation and split it 4 : 3 : 5.

    Raises:
        DataError: There are fewer than 60 samples, so that a part would be empty.
    """
    if len(data) < 60:
        raise DataError(f"{len(data)} samples are too few: at least 60 are needed, since a fifth is held out")
    order = permutation(len(data), SPLIT_SEED)
    held_out = len(data) // 5
    reference, choice = held_out * 4 // 12, held_out * 3 // 12
    cuts = np.cumsum([reference, choice, held_out - reference - choice])
    a, b, c, rest = np.split(order, cuts)
    return Splits(train=data[np.sort(rest)], reference=data[a], choice=data[b], calibration=data[c])


def describe(config: TrainConfig, parts: Splits) -> str:
    """Describe the data, their split and the network widths in one line."""
    counts = (
        f"{len(parts.train)} to train on, {len(parts.held_out)} held out, {len(parts.calibration)} of them for p-values"
    )
    network = config.network
    if not network.is_image:
        return f"{config.data}: {counts}"
    channels, height, width = network.data_shape
    form = f"{width}x{height} {'grey' if channels == 1 else 'colour'}"
    return f"{config.data}: images of {form}, {counts}; widths {', '.join(map(str, network.widths))}"


def load_data(source: str, config: ModelConfig, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """Make or read the data set `source`: uint8 images (N, H, W, C), or float32 points (N, D).

    Args and Raises: As `load_named`.
    """
    return load_named(source, config, max_pixels)[0]


def load_named(source: str, config: ModelConfig, max_pixels: int = MAX_PIXELS) -> tuple[NDArray[Any], list[str]]:
    """Make or read the data set `source`, and name its N samples. A name is relative to `source`.

    Args:
        max_pixels: Most pixels of one image.

    Raises:
        DataError: `source` is neither a synthetic set nor a readable path, or its shape is not that of the networks.
    """
    if not source:
        raise DataError("this recipe needs --data PATH (a folder or archive of images, .npy, .npz or IDX files)")
    if source in MADE:
        data = MADE[source](config)
        if data.shape[1:] != _array_shape(config):
            raise DataError(f"{source}: samples have shape {data.shape[1:]}, the networks take {_array_shape(config)}")
        return data, [f"[{i}]" for i in range(len(data))]
    if not config.is_image:
        raise DataError(f"{source}: points must come from a synthetic data set: {', '.join(MADE)}")
    images, names = read_named(source, contract(config), max_pixels)
    return images, [name.removeprefix(str(Path(source))).lstrip("/:") for name in names]


def contract(config: ModelConfig) -> Contract:
    """Image size and channels that the networks of `config` take."""
    channels, height, width = config.data_shape
    return Contract(height, width, channels)


def to_tensor(data: NDArray[Any], device: torch.device | str = "cpu") -> Tensor:
    """Convert uint8 images (B, H, W, C) to float (B, C, H, W) in [-1, 1]; points are not scaled."""
    tensor = torch.from_numpy(np.ascontiguousarray(data)).to(device)
    if tensor.dtype != torch.uint8:
        return tensor
    scaled: Tensor = to_unit(tensor.permute(0, 3, 1, 2).float())
    return scaled.contiguous()


def flip_images(images: Tensor, side: Tensor) -> Tensor:
    """Mirror images (B, C, H, W) left to right where `side` (B,), uniform in [0, 1), is below ½."""
    return torch.where((side < 0.5)[:, None, None, None], images.flip(3), images)


def batch_at(data: NDArray[Any], step: int, batch_size: int, seed: int) -> NDArray[Any]:
    """The batch of `step`, (batch_size, ...). Each epoch has its own random order and drops the last partial batch.

    Raises:
        DataError: There are fewer samples than one batch.
    """
    per_epoch = len(data) // batch_size
    if not per_epoch:
        raise DataError(f"{len(data)} training samples are fewer than one batch of {batch_size}; set batch_size lower")
    epoch, place = divmod(step, per_epoch)
    return data[_epoch_order(len(data), seed, epoch)[place * batch_size : (place + 1) * batch_size]]


@lru_cache(maxsize=1)  # all steps of an epoch share its order
def _epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return permutation(count, random_word(seed, epoch))


def _array_shape(config: ModelConfig) -> tuple[int, ...]:
    if not config.is_image:
        return config.data_shape
    channels, height, width = config.data_shape
    return height, width, channels


def made_shapes(config: ModelConfig, count: int = 3_000) -> NDArray[np.uint8]:
    """Bright discs and squares of random position, size and grey level on black, uint8 (count, H, W, C)."""
    channels, height, width = config.data_shape
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    cx, cy = (rng.uniform(0.3, 0.7, (count, 1, 1)) * side for side in (width, height))
    radius = rng.uniform(0.15, 0.3, (count, 1, 1)) * min(height, width)
    dx, dy = np.abs(x - cx), np.abs(y - cy)
    distance = np.where(rng.random((count, 1, 1)) < 0.5, np.hypot(dx, dy), np.maximum(dx, dy))
    level = rng.uniform(128, 255, (count, 1, 1, channels))
    images: NDArray[np.uint8] = ((distance < radius)[..., None] * level).astype(np.uint8)
    return images


GAUSSIAN_STD = 0.1 / 2.828
GAUSSIAN_CENTRES = np.stack(np.meshgrid(*[np.arange(-2, 3) * 2 / 2.828] * 2), -1).reshape(25, 2)


def made_25_gaussians(config: ModelConfig, count: int = 200_000) -> NDArray[np.float32]:
    """Points (count, 2) of a uniform mixture of 25 narrow Gaussians on a square grid, with unit variance."""
    rng = np.random.default_rng(0)
    points = GAUSSIAN_CENTRES[rng.integers(25, size=count)] + GAUSSIAN_STD * rng.standard_normal((count, 2))
    return points.astype(np.float32)


def made_pinwheel(config: ModelConfig, count: int = 200_000) -> NDArray[np.float32]:
    """Points (count, 2) of five blades, each a Gaussian bent around the centre, with unit variance.

    Source: Johnson et al. 2016, *Composing Graphical Models with Neural Networks for Structured Representations and
    Fast Inference*.
    """
    rng = np.random.default_rng(0)
    along, across = 1 + 0.3 * rng.standard_normal(count), 0.1 * rng.standard_normal(count)
    turn = 2 * np.pi / 5 * rng.integers(5, size=count) + 0.25 * np.exp(along)
    x, y = along * np.cos(turn) - across * np.sin(turn), along * np.sin(turn) + across * np.cos(turn)
    return _unit_variance(np.stack([x, y], -1))


def made_swiss_roll(config: ModelConfig, count: int = 200_000) -> NDArray[np.float32]:
    """Points (count, 2) of a spiral of one and a half turns, with unit variance: scikit-learn's roll, from the side."""
    roll, _ = make_swiss_roll(count, noise=0.4, random_state=0)
    return _unit_variance(roll[:, [0, 2]])


def _unit_variance(points: NDArray[np.float64]) -> NDArray[np.float32]:
    centred = points - points.mean(0)
    scaled: NDArray[np.float32] = (centred / centred.std(0)).astype(np.float32)
    return scaled


MADE: dict[str, Callable[[ModelConfig], NDArray[Any]]] = {
    "shapes": made_shapes,
    "25-gaussians": made_25_gaussians,
    "pinwheel": made_pinwheel,
    "swiss-roll": made_swiss_roll,
}
