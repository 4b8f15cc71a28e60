"""How a model is trained: every setting of a run, checked. `training.recipes` has sensible ones."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ddaebm.model.config import ModelConfig
from ddaebm.model.errors import ConfigError

_CHOICES = {
    "contrast": ("difference", "relativistic", "non-saturating"),
    "gradient_penalty": ("r1", "conditional"),
    "precision": ("fp32", "bf16"),
    "reconstruct_from": ("encoder", "prior"),
}


@dataclass(frozen=True)
class TrainConfig:
    """One training run; every field may be overridden by `--set name=value`.

    Raises:
        ConfigError: a value that has no meaning.
    """

    recipe: str
    network: ModelConfig
    data: str  # a PATH, or the name of a made set: `training.data.MADE`
    steps: int
    start: str = ""  # digest of the bundle whose weights the run began with; none: at random
    encoder_steps: int = 0  # the first steps, in which the encoder alone learns: no bundle has one
    batch_size: int = 64  # per process
    seed: int = 0
    lr_generator: float = 2e-4  # and encoder
    lr_energy: float = 2e-4
    lr_final: float = 1e-5  # both follow a cosine down to it
    adam_betas: tuple[float, float] = (0.0, 0.9)
    contrast: str = "difference"  # the paper's, of energies; or "relativistic", or "non-saturating", DDGAN's
    gradient_penalty: str = "r1"  # or "conditional", the paper's
    penalize_generated: bool = False  # the gradient penalty at generated x_t too
    gamma: float = 0.02
    penalty_every: int = 1  # > 1: lazily, weighted to the same mean
    entropy_weight: float = 0.1  # lambda; 1 is the divergence itself
    denoise_weight: float = 0.0  # of the energy network's second task, for which network.energy_denoises makes room
    value_penalty: float = 0.0  # weight on squared energies, so that they stay near those of data
    forward_weight: float = 1.0  # of KL(q ‖ p_phi) beside KL(p_phi ‖ p_theta); 1 is Jeffrey's divergence
    reconstruct_from: str = "encoder"  # x_t from the encoder's latent; or "prior": from a draw that knows nothing of it
    likelihood_floor: float = 0.0  # 0: squared error, the paper's; > 0: the posterior's variance, at least this
    noise_at_zero: bool = False  # in training the generated x_0 has the noise of state 0; in sampling never
    ema_decay: float = 0.999
    flip: bool = False  # half of the images are mirrored, left to right
    precision: str = "fp32"  # or "bf16": the networks under autocast, the penalty and the losses still in fp32
    log_every: int = 20
    sample_every: int = 500
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        object.__setattr__(self, "adam_betas", tuple(self.adam_betas))
        for name in ("steps", "batch_size", "penalty_every", "log_every", "sample_every", "checkpoint_every"):
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
                " contradict each other: a weight above 0 needs the output, and the output a weight"
            )
        if (self.contrast == "non-saturating") != self.network.energy_sees_next:
            raise ConfigError(
                f"contrast {self.contrast} and network.energy_sees_next {self.network.energy_sees_next} contradict each"
                " other: a discriminator sees the pair, of which an energy need not be told the half that it is given"
            )
        if self.network.energy_sees_next and self.gradient_penalty != "r1":
            raise ConfigError("gradient_penalty must be r1 with network.energy_sees_next: it is conditional by itself")
        if self.flip and not self.network.is_image:
            raise ConfigError("flip mirrors images; points have no left and right")
        if len(self.adam_betas) != 2 or not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ConfigError(f"adam_betas must be two numbers in [0, 1), not {self.adam_betas}")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay must lie in [0, 1), not {self.ema_decay}")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        try:
            return cls(**{**values, "network": ModelConfig.from_dict(values["network"])})
        except (KeyError, TypeError) as error:
            raise ConfigError(f"train config: {error}") from error

    def override(self, assignments: Mapping[str, str]) -> Self:
        """A copy with `name=value` applied; values are JSON, or else plain strings.

        Raises:
            ConfigError: no such field, or a value of another type.
        """
        values = self.to_dict()
        for name, text in assignments.items():
            *path, leaf = name.split(".")
            target = values
            for part in path:
                target = target[part] if isinstance(target.get(part), dict) else {}
            if leaf not in target or isinstance(target[leaf], dict):
                raise ConfigError(f"--set {name}: no such setting; see config.json of any run for their names")
            target[leaf] = _parse(name, text, target[leaf])
        return self.from_dict(values)


def _parse(name: str, text: str, old: Any) -> Any:
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
