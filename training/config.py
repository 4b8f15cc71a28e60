"""How a model is trained, and the recipes: functions that return a `TrainConfig`."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from model.config import ModelConfig
from model.errors import ConfigError


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
    batch_size: int = 64  # per process
    seed: int = 0
    lr_generator: float = 2e-4  # and encoder
    lr_energy: float = 2e-4
    lr_final: float = 1e-5  # both follow a cosine down to it
    adam_betas: tuple[float, float] = (0.0, 0.9)
    gradient_penalty: str = "r1"  # or "conditional", the paper's
    gamma: float = 0.02
    penalty_every: int = 1  # > 1: lazily, weighted to the same mean
    entropy_weight: float = 0.1  # lambda; 1 is the divergence itself
    value_penalty: float = 0.0  # weight on squared energies, so that they stay near those of data
    likelihood_floor: float = 0.0  # 0: squared error, the paper's; > 0: the posterior's variance, at least this
    noise_at_zero: bool = False  # in training the generated x_0 has the noise of state 0; in sampling never
    ema_decay: float = 0.999
    precision: str = "fp32"  # or "bf16": the networks under autocast, the penalty and the losses still in fp32
    log_every: int = 20
    sample_every: int = 500
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        object.__setattr__(self, "adam_betas", tuple(self.adam_betas))
        for name in ("steps", "batch_size", "penalty_every", "log_every", "sample_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("lr_generator", "lr_energy", "lr_final", "gamma", "entropy_weight", "seed",
                     "value_penalty", "likelihood_floor"):  # fmt: skip
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be finite and not negative, not {getattr(self, name)}")
        if self.gradient_penalty not in ("r1", "conditional"):
            raise ConfigError(f"gradient_penalty must be r1 or conditional, not {self.gradient_penalty!r}")
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"precision must be fp32 or bf16, not {self.precision!r}")
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


def debug() -> TrainConfig:
    """Made shapes at 16x16 and tiny networks: the whole path in seconds, no data needed."""
    network = ModelConfig(data_shape=(1, 16, 16), latent_dim=8, embed_dim=16, widths=(8, 16),
                          blocks_per_level=1, middle_blocks=1, norm_groups=4)  # fmt: skip
    return TrainConfig(recipe="debug", network=network, data="shapes", steps=40, batch_size=32,
                       log_every=5, sample_every=20, checkpoint_every=20)  # fmt: skip


def toy() -> TrainConfig:
    """25 Gaussians in the plane, for a density that can be read; under ten minutes of one core.

    What it changes of `toy_paper`, and why, is in docs/paper.md.
    """
    network = ModelConfig(data_shape=(2,), beta_max=5.0, latent_dim=2, widths=(128, 128),
                          frequency=20.0, energy_curvature=10.0)  # fmt: skip
    return TrainConfig(recipe="toy", network=network, data="25-gaussians", steps=45_000, batch_size=400,
                       lr_generator=1e-3, lr_energy=1e-3, gamma=1e-4, penalty_every=4, entropy_weight=1.0,
                       value_penalty=0.03, likelihood_floor=1e-3, noise_at_zero=True, ema_decay=0.9995,
                       log_every=500, sample_every=10_000, checkpoint_every=5_000)  # fmt: skip


def toy_paper() -> TrainConfig:
    """The same points with the paper's settings and layer sizes, on a schedule that does reach N(0, I)."""
    network = ModelConfig(data_shape=(2,), latent_dim=2, widths=(300, 300))
    return TrainConfig(recipe="toy-paper", network=network, data="25-gaussians", steps=100_000, batch_size=200,
                       lr_generator=1e-4, lr_energy=1e-4, gradient_penalty="conditional", entropy_weight=0.1,
                       log_every=500, sample_every=10_000, checkpoint_every=5_000)  # fmt: skip


def fashion_mnist() -> TrainConfig:
    """28x28 grey clothes on a laptop: an hour of one core, about 15 minutes of a small GPU."""
    network = ModelConfig(data_shape=(1, 28, 28))
    return TrainConfig(recipe="fashion-mnist", network=network, data="", steps=4_000)


def cifar10() -> TrainConfig:
    """CIFAR-10's 50,000 training images at the paper's size, for four GPUs of 32 GB (docs/training.md)."""
    return _paper("cifar10", size=32, images=50_000, epochs=1_300, batch_size=64, lr=1e-4, gamma=0.02, ema_decay=0.9999,
                  widths=(128, 256, 256, 256), norm_groups=32)  # fmt: skip


def celeba64() -> TrainConfig:
    """CelebA's 162,770 training images, 64x64, at the paper's size, for four GPUs of 24 GB (docs/training.md)."""
    return _paper("celeba64", size=64, images=162_770, epochs=600, batch_size=32, lr=5e-5, gamma=0.002, ema_decay=0.999,
                  widths=(64, 64, 128, 128, 256), norm_groups=16)  # fmt: skip


def lsun_church128() -> TrainConfig:
    """LSUN church outdoor's 126,227 training images, 128x128, at the paper's size, for four GPUs of 40 GB.

    No input pyramid at this size (docs/training.md).
    """
    return _paper("lsun_church128", size=128, images=126_227, epochs=500, batch_size=12, lr=5e-5, gamma=0.005,
                  ema_decay=0.999, widths=(64, 128, 128, 256, 256), norm_groups=16, pyramid=False)  # fmt: skip


def _paper(
    recipe: str, *, size: int, images: int, epochs: int, batch_size: int, lr: float, gamma: float, ema_decay: float,
    widths: tuple[int, ...], norm_groups: int, pyramid: bool = True,
) -> TrainConfig:  # fmt: skip
    """The paper's settings and its kind of U-Net (NCSN++ with the latent of DDGAN) on this backbone.

    Args:
        images: the size of the data set, of which a fifth is held out. An epoch is as many whole batches of
            four processes as the rest holds; with other data or processes give the steps yourself.
        norm_groups: at least four channels a group.
    """
    # The coarsest level has two blocks on the way down, two on the way up, and two between.
    network = ModelConfig(data_shape=(3, size, size), latent_dim=100, widths=widths, embed_dim=256, patch_size=1,
                          blocks_per_level=2, middle_blocks=6, norm_groups=norm_groups, attention=(16,),
                          resample="fir", pyramid=pyramid, mapping_depth=4)  # fmt: skip
    steps = epochs * ((images - images // 5) // (4 * batch_size))
    return TrainConfig(recipe=recipe, network=network, data="", steps=steps, batch_size=batch_size, lr_generator=lr,
                       lr_energy=lr, gradient_penalty="conditional", gamma=gamma, ema_decay=ema_decay,
                       log_every=100, sample_every=5_000, checkpoint_every=1_000)  # fmt: skip


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "debug": debug,
    "toy": toy,
    "toy-paper": toy_paper,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "celeba64": celeba64,
    "lsun_church128": lsun_church128,
}


def make_config(recipe: str) -> TrainConfig:
    """The named recipe.

    Raises:
        ConfigError: there is no such recipe.
    """
    if recipe not in RECIPES:
        raise ConfigError(f"no recipe {recipe!r}; there are {', '.join(RECIPES)}")
    return RECIPES[recipe]()
