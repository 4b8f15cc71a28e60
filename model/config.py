"""`ModelConfig`: the shape of the data, the noise schedule and the size of the networks."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ddaebm.model.errors import ConfigError

_MOST = 4096  # of blocks, steps or channels; far more than anyone needs, and not enough to fill the memory
RETIRED: dict[str, Any] = {"energy_sees_next": False}  # removed field of ModelConfig -> the default it had


@dataclass(frozen=True)
class ModelConfig:
    """Settings from which the three networks and the diffusion are rebuilt.

    `data_shape` selects the network type: (C, H, W) means images and a U-Net, (D,) means points and an MLP.

    Raises:
        ConfigError: A field is out of range, or fields contradict each other.
    """

    data_shape: tuple[int, ...]
    num_steps: int = 4  # T, the number of denoising transitions
    beta_min: float = 0.1
    beta_max: float = 20.0
    time_eps: float = 1e-3  # t_0; state 0 carries noise of std about 0.01
    latent_dim: int = 64  # nz
    widths: tuple[int, ...] = (32, 64)  # U-Net: channels of each level; MLP: width of each hidden layer
    # Only for the MLP.
    frequency: float = 0.0  # > 0: largest norm of the first layer's initial weights, to learn fine structure; 0: off
    energy_curvature: float = 0.0  # > 0: K of E = K/2·‖x - h‖², which rises away from the data; 0: scalar output
    linear_skip: bool = False  # add a linear map of the inputs to the output, one map per transition
    # Only for the U-Net.
    embed_dim: int = 128  # width of the conditioning vector
    patch_size: int = 2  # pixels are folded into channels before the first convolution
    blocks_per_level: int = 2
    middle_blocks: int = 3
    norm_groups: int = 8
    attention: tuple[int, ...] = ()  # heights of the feature maps with self-attention after each block
    resample: str = "strided"  # strided convolutions between levels; or "fir": residual blocks with filter (1, 3, 3, 1)
    pyramid: bool = False  # feed the downsampled input image to each coarser level
    mapping_depth: int = 3  # layers between z and the conditioning vector
    energy_denoises: bool = False  # the energy network also predicts x_clean, an auxiliary task during training

    def __post_init__(self) -> None:
        for name in ("data_shape", "widths", "attention"):  # lists arrive from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.data_shape) not in (1, 3) or min(self.data_shape) < 1:
            raise ConfigError(f"data_shape must be (D,) or (C, H, W), not {self.data_shape}")
        for name in ("num_steps", "latent_dim", "patch_size", "blocks_per_level", "middle_blocks", "norm_groups",
                     "mapping_depth"):  # fmt: skip
            if not 1 <= getattr(self, name) <= _MOST:
                raise ConfigError(f"{name} must lie between 1 and {_MOST}, not {getattr(self, name)}")
        if not 0 < self.beta_min <= self.beta_max or not math.isfinite(self.beta_max):
            raise ConfigError(f"need 0 < beta_min <= beta_max, not {self.beta_min} and {self.beta_max}")
        if not 0 < self.time_eps < 1:
            raise ConfigError(f"time_eps must lie in (0, 1), not {self.time_eps}")
        for name in ("frequency", "energy_curvature"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be finite and not negative, not {getattr(self, name)}")
        if 0 < self.frequency < 1:
            raise ConfigError(f"frequency must be 0 or at least 1, not {self.frequency}")
        if self.embed_dim < 4 or self.embed_dim % 2:
            raise ConfigError(f"embed_dim must be even and at least 4, not {self.embed_dim}")
        if any(type(value) is not int for value in (*self.data_shape, *self.widths)):
            raise ConfigError(f"data_shape and widths must hold integers, not {self.data_shape} and {self.widths}")
        if not self.widths or min(self.widths) < 1 or max(self.widths) > _MOST:
            raise ConfigError(f"widths must hold at least one width, each between 1 and {_MOST}, not {self.widths}")
        if self.resample not in ("strided", "fir"):
            raise ConfigError(f"resample must be strided or fir, not {self.resample!r}")
        if self.energy_denoises and not self.is_image:
            raise ConfigError("energy_denoises is for images: the energy network of points cannot output x_clean")
        if self.linear_skip and self.is_image:
            raise ConfigError("linear_skip is for points: a U-Net already has skip connections")
        if self.is_image:
            self._require_a_unet()

    def _require_a_unet(self) -> None:
        fold = self.patch_size * 2 ** (len(self.widths) - 1)
        if any(side % fold for side in self.data_shape[1:]):
            raise ConfigError(
                f"image sides {self.data_shape[1:]} must be multiples of {fold}"
                f" (patch_size {self.patch_size}, {len(self.widths)} levels)"
            )
        if any(width % self.norm_groups for width in self.widths):
            raise ConfigError(f"widths {self.widths} must be multiples of norm_groups {self.norm_groups}")
        if not set(self.attention) <= set(self.heights):
            raise ConfigError(f"attention must name heights of feature maps, from {self.heights}, not {self.attention}")
        if self.pyramid and len(self.widths) == 1:
            raise ConfigError("pyramid needs a coarser level: give at least two widths, or set pyramid to false")

    @property
    def is_image(self) -> bool:
        """True for images, False for points."""
        return len(self.data_shape) == 3

    @property
    def heights(self) -> tuple[int, ...]:
        """Height of the feature maps at each level of the U-Net."""
        return tuple(self.data_shape[1] // (self.patch_size * 2**level) for level in range(len(self.widths)))

    @property
    def fold(self) -> int:
        """Pixels along a side of a place of the coarsest resolution."""
        return self.patch_size * int(2 ** (len(self.widths) - 1))

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, as `from_dict` takes them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a config from `to_dict` output, also that of earlier versions.

        Raises:
            ConfigError: A field is unknown, missing or out of range, or was removed (see `drop_retired`).
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known - set(RETIRED)):
            raise ConfigError(f"unknown model config fields: {', '.join(unknown)}")
        try:
            return cls(**drop_retired(values, RETIRED))
        except TypeError as error:
            raise ConfigError(f"model config: {error}") from error


def drop_retired(values: Mapping[str, Any], retired: Mapping[str, Any]) -> dict[str, Any]:
    """Copy `values` without removed fields, so that files of earlier versions load.

    Args:
        retired: Removed fields and the default that each had.

    Raises:
        ConfigError: A removed field has another value than its default, so that its effect would be lost.
    """
    for name, default in retired.items():
        if values.get(name, default) != default:
            raise ConfigError(
                f"{name}={values[name]!r} is no longer supported; it was removed, and only its old default"
                f" {default!r} is accepted"
            )
    return {name: value for name, value in values.items() if name not in retired}
