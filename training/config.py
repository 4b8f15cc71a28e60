"""`TrainConfig`: all settings of a training run. `training.recipes` has ready-made ones."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ddaebm.model.config import RETIRED as RETIRED_NETWORK
from ddaebm.model.config import ModelConfig, drop_retired
from ddaebm.model.errors import ConfigError
from ddaebm.model.images.decode import MAX_PIXELS

# Removed field of TrainConfig -> the default it had. Variants of the loss are now in training/reproduce/variants.py.
RETIRED: dict[str, Any] = {"contrast": "difference", "penalize_generated": False, "reconstruct_from": "encoder"}
_CHOICES = {"gradient_penalty": ("r1", "conditional"), "precision": ("fp32", "bf16")}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run. `--set name=value` overrides any of them.

    Raises:
        ConfigError: A field is out of range, or fields contradict each other.
    """

    recipe: str
    network: ModelConfig
    data: str  # a path, or the name of a synthetic data set in `training.data.MADE`
    steps: int
    start: str = ""  # digest of the bundle that gave the initial weights; empty: random initialisation
    encoder_steps: int = 0  # train only the encoder for the first steps; for `start`, since bundles have no encoder
    batch_size: int = 64  # per process
    seed: int = 0
    lr_generator: float = 2e-4  # also for the encoder
    lr_energy: float = 2e-4
    lr_final: float = 1e-5  # both learning rates decay to it along a cosine
    adam_betas: tuple[float, float] = (0.0, 0.9)
    gradient_penalty: str = "r1"  # or "conditional", as in the paper; see `losses.gradient_penalty`
    gamma: float = 0.02  # weight of the gradient penalty
    penalty_every: int = 1  # > 1: penalty every n-th step, n times as strong
    entropy_weight: float = 0.1  # lambda; with 1 the loss is the divergence itself
    denoise_weight: float = 0.0  # weight of the energy network's denoising task; needs network.energy_denoises
    value_penalty: float = 0.0  # weight of the penalty on squared energies; see `losses.value_penalty`
    forward_weight: float = 1.0  # weight of KL(q ‖ p_phi) relative to KL(p_phi ‖ p_theta); 1 is the Jeffrey divergence
    likelihood_floor: float = 0.0  # > 0: Gaussian with the posterior's variance, but at least this; 0: squared error
    noise_at_zero: bool = False  # add posterior noise to the generated x_0 in training; sampling never does
    ema_decay: float = 0.999
    max_pixels: int = MAX_PIXELS  # of one image of the data; a larger one is an error
    flip: bool = False  # mirror half of the training images left to right
    precision: str = "fp32"  # or "bf16": networks under autocast; gradient penalty and losses stay in float32
    log_every: int = 20
    sample_every: int = 500
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        object.__setattr__(self, "adam_betas", tuple(self.adam_betas))
        for name in ("steps", "batch_size", "penalty_every", "log_every", "sample_every", "checkpoint_every",
                     "max_pixels"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("encoder_steps", "lr_generator", "lr_energy", "lr_final", "gamma", "entropy_weight", "seed",
                     "denoise_weight", "value_penalty", "forward_weight", "likelihood_floor"):  # fmt: skip
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be finite and not negative, not {getattr(self, name)}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} must be {' or '.join(choices)}, not {getattr(self, name)!r}")
        if (self.denoise_weight > 0) != self.network.energy_denoises:
            raise ConfigError(
                f"denoise_weight {self.denoise_weight:g} and network.energy_denoises {self.network.energy_denoises}"
                " contradict each other: set both, or neither"
            )
        if self.flip and not self.network.is_image:
            raise ConfigError("flip is for images; points cannot be mirrored")
        if len(self.adam_betas) != 2 or not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ConfigError(f"adam_betas must be two numbers in [0, 1), not {self.adam_betas}")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay must lie in [0, 1), not {self.ema_decay}")

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, as `from_dict` takes them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a config from `to_dict` output, also that of earlier versions.

        Raises:
            ConfigError: A field is unknown, missing or out of range, or was removed (see `model.config.drop_retired`).
        """
        try:
            network = ModelConfig.from_dict(values["network"])
            return cls(**{**drop_retired(values, RETIRED), "network": network})
        except (KeyError, TypeError) as error:
            raise ConfigError(f"train config: {error}") from error

    def override(self, assignments: Mapping[str, str]) -> Self:
        """Copy the config with new values, given as text.

        Args:
            assignments: Field names, `network.NAME` for those of the network, and values. A value of a string field is
                taken as it is; any other is parsed as JSON.

        Raises:
            ConfigError: There is no such field, it was removed, or the value has the wrong type or is out of range.
        """
        values = RETIRED | self.to_dict()  # with removed fields, so that `from_dict` can refuse them by name
        values["network"] = RETIRED_NETWORK | values["network"]
        for name, text in assignments.items():
            *path, leaf = name.split(".")
            target = values
            for part in path:
                target = target[part] if isinstance(target.get(part), dict) else {}
            if leaf not in target or isinstance(target[leaf], dict):
                raise ConfigError(f"--set {name}: no such setting; config.json of a run lists them")
            target[leaf] = _parse(name, text, target[leaf])
        return self.from_dict(values)


def _parse(name: str, text: str, old: Any) -> Any:
    """Parse the new value `text` of the field `name` to the type of its `old` value."""
    if isinstance(old, str):
        return text
    try:
        value = json.loads(f"[{text}]" if isinstance(old, (list, tuple)) and not text.startswith("[") else text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--set {name}: cannot read {text!r}") from error
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    wanted = list if isinstance(old, tuple) else type(old)
    if type(value) is not wanted:
        raise ConfigError(f"--set {name}: needs {wanted.__name__}, not {text!r}")
    return value
