"""Datasets in memory: made or read, split once and for all, and handed out in an order that is a
pure function of (seed, step) — so a resumed run sees what the uninterrupted one would have seen."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import make_swiss_roll
from torch import Tensor

from ddaebm.model.config import ModelConfig
from ddaebm.model.errors import DataError
from ddaebm.model.images.arrays import to_unit
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.readers import read_images
from ddaebm.model.noise import permutation, random_word
from ddaebm.training.config import TrainConfig

SPLIT_SEED = 20_240_302  # fixed for ever: changing it moves images between training and calibration


@dataclass(frozen=True)
class Splits:
    """Disjoint parts of one training set. The networks see `train` alone.

    A fifth is held out: of 60,000 images 4,000 reference (standardisation), 3,000 choice (picking the
    form of the score) and 5,000 calibration (conformal p-values, which no choice may touch).
    """

    train: NDArray[Any]
    reference: NDArray[Any]
    choice: NDArray[Any]
    calibration: NDArray[Any]

    @property
    def held_out(self) -> NDArray[Any]:
        """All that the networks do not see."""
        return np.concatenate([self.reference, self.choice, self.calibration])

    def digests(self) -> dict[str, dict[str, Any]]:
        """Size and sha256 of the bytes of each part, in its fixed order."""
        parts = {name: getattr(self, name) for name in ("train", "reference", "choice", "calibration")}
        return {
            name: {"count": len(part), "sha256": hashlib.sha256(part.tobytes()).hexdigest()}
            for name, part in parts.items()
        }


def split(data: NDArray[Any]) -> Splits:
    """Hold out a fifth of `data` (N, ...) by a fixed permutation, and part it 4 : 3 : 5.

    Raises:
        DataError: too few samples to leave each part one.
    """
    if len(data) < 60:
        raise DataError(f"{len(data)} samples are too few: at least 60 are needed to hold some out")
    order = permutation(len(data), SPLIT_SEED)
    held_out = len(data) // 5
    reference, choice = held_out * 4 // 12, held_out * 3 // 12
    cuts = np.cumsum([reference, choice, held_out - reference - choice])
    a, b, c, rest = np.split(order, cuts)
    return Splits(train=data[np.sort(rest)], reference=data[a], choice=data[b], calibration=data[c])


def describe(config: TrainConfig, parts: Splits) -> str:
    """One line for who starts a run: what the data are, and what is made of them."""
    counts = (
        f"{len(parts.train)} to train on, {len(parts.held_out)} held out, {len(parts.calibration)} of them for p-values"
    )
    network = config.network
    if not network.is_image:
        return f"{config.data}: {counts}"
    channels, height, width = network.data_shape
    form = f"{width}x{height} {'grey' if channels == 1 else 'colour'}"
    return f"{config.data}: images of {form}, {counts}; widths {', '.join(map(str, network.widths))}"


def load_data(source: str, config: ModelConfig) -> NDArray[Any]:
    """All of `source`: uint8 (N, H, W, C), or float32 (N, D) points.

    Raises:
        DataError: `source` is neither a made set nor a readable PATH, or of another shape.
    """
    if not source:
        raise DataError("this recipe needs --data PATH (a folder or archive of images, .npy, .npz or IDX files)")
    if source in MADE:
        data = MADE[source](config)
        if data.shape[1:] != _array_shape(config):
            raise DataError(f"{source}: makes {data.shape[1:]}, the networks take {_array_shape(config)}")
        return data
    if not config.is_image:
        raise DataError(f"{source}: points come from a made set: {', '.join(MADE)}")
    return read_images(source, contract(config))


def contract(config: ModelConfig) -> Contract:
    channels, height, width = config.data_shape
    return Contract(height, width, channels)


def to_tensor(data: NDArray[Any], device: torch.device | str = "cpu") -> Tensor:
    """uint8 (B, H, W, C) -> float (B, C, H, W) in [-1, 1]; points as they are."""
    tensor = torch.from_numpy(np.ascontiguousarray(data)).to(device)
    if tensor.dtype != torch.uint8:
        return tensor
    scaled: Tensor = to_unit(tensor.permute(0, 3, 1, 2).float())
    return scaled.contiguous()


def batch_at(data: NDArray[Any], step: int, batch_size: int, seed: int) -> NDArray[Any]:
    """The batch of `step`: epochs of fixed random orders, last partial batch left out.

    Raises:
        DataError: fewer samples than one batch.
    """
    per_epoch = len(data) // batch_size
    if not per_epoch:
        raise DataError(f"{len(data)} training samples are fewer than one batch of {batch_size}; set batch_size lower")
    epoch, place = divmod(step, per_epoch)
    return data[_epoch_order(len(data), seed, epoch)[place * batch_size : (place + 1) * batch_size]]


@lru_cache(maxsize=1)  # one epoch's order serves hundreds of steps
def _epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return permutation(count, random_word(seed, epoch))


def _array_shape(config: ModelConfig) -> tuple[int, ...]:
    if not config.is_image:
        return config.data_shape
    channels, height, width = config.data_shape
    return height, width, channels


def made_shapes(config: ModelConfig, count: int = 3_000) -> NDArray[np.uint8]:
    """Bright discs and squares of random place, size and grey on black."""
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
    """Equal parts of 25 narrow Gaussians on a square grid, of unit variance as a whole."""
    rng = np.random.default_rng(0)
    points = GAUSSIAN_CENTRES[rng.integers(25, size=count)] + GAUSSIAN_STD * rng.standard_normal((count, 2))
    return points.astype(np.float32)


def made_pinwheel(config: ModelConfig, count: int = 200_000) -> NDArray[np.float32]:
    """Five blades, each a Gaussian bent around the centre (Johnson et al. 2016), of unit variance."""
    rng = np.random.default_rng(0)
    along, across = 1 + 0.3 * rng.standard_normal(count), 0.1 * rng.standard_normal(count)
    turn = 2 * np.pi / 5 * rng.integers(5, size=count) + 0.25 * np.exp(along)
    x, y = along * np.cos(turn) - across * np.sin(turn), along * np.sin(turn) + across * np.cos(turn)
    return _unit_variance(np.stack([x, y], -1))


def made_swiss_roll(config: ModelConfig, count: int = 200_000) -> NDArray[np.float32]:
    """A spiral of one and a half turns, of unit variance: scikit-learn's, seen from its side."""
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
