"""Recipes: ready-made training settings, by name."""

import dataclasses
from collections.abc import Callable

from ddaebm.model.config import ModelConfig
from ddaebm.model.errors import ConfigError
from ddaebm.model.images.contract import Contract
from ddaebm.training.config import TrainConfig


def debug() -> TrainConfig:
    """Synthetic 16x16 images and tiny networks, to run the whole pipeline in seconds without data."""
    network = ModelConfig(data_shape=(1, 16, 16), latent_dim=8, embed_dim=16, widths=(8, 16),
                          blocks_per_level=1, middle_blocks=1, norm_groups=4)  # fmt: skip
    return TrainConfig(recipe="debug", network=network, data="shapes", steps=40, batch_size=32,
                       log_every=5, sample_every=20, checkpoint_every=20)  # fmt: skip


def toy() -> TrainConfig:
    """25 Gaussians in the plane, with settings for an accurate density; under ten minutes on one core.

    docs/paper.md explains how it differs from `toy_paper`.
    """
    network = ModelConfig(data_shape=(2,), beta_max=5.0, latent_dim=2, widths=(128, 128),
                          frequency=20.0, energy_curvature=10.0)  # fmt: skip
    return TrainConfig(recipe="toy", network=network, data="25-gaussians", steps=45_000, batch_size=400,
                       lr_generator=1e-3, lr_energy=1e-3, gamma=1e-4, penalty_every=4, entropy_weight=1.0,
                       value_penalty=0.03, likelihood_floor=1e-3, noise_at_zero=True, ema_decay=0.9995,
                       log_every=500, sample_every=10_000, checkpoint_every=5_000)  # fmt: skip


def toy_paper() -> TrainConfig:
    """25 Gaussians with the paper's settings and layer sizes, but with a schedule that ends close to N(0, I)."""
    network = ModelConfig(data_shape=(2,), latent_dim=2, widths=(300, 300))
    return TrainConfig(recipe="toy-paper", network=network, data="25-gaussians", steps=100_000, batch_size=200,
                       lr_generator=1e-4, lr_energy=1e-4, gradient_penalty="conditional", entropy_weight=0.1,
                       log_every=500, sample_every=10_000, checkpoint_every=5_000)  # fmt: skip


def fashion_mnist() -> TrainConfig:
    """Fashion-MNIST, 28x28 grey; four hours on one core.

    It gave the first weights of the shipped bundle; docs/results.md describes the later training.
    """
    return _found("fashion-mnist", ModelConfig(data_shape=(1, 28, 28)), steps=24_000)


def fashion_mnist_paper() -> TrainConfig:
    """The network of `fashion_mnist` with the paper's losses and penalty, the baseline of docs/results.md."""
    network = ModelConfig(data_shape=(1, 28, 28))
    return TrainConfig(recipe="fashion-mnist-paper", network=network, data="", steps=4_000,
                       gradient_penalty="conditional")  # fmt: skip


def _found(recipe: str, network: ModelConfig, steps: int) -> TrainConfig:
    """The best settings for small images from the search in docs/results.md, at the training cost of the paper's.

    They differ from the paper's in four ways. The reconstruction likelihood has the posterior's variance, which makes
    the last transition a good denoiser. There are more and smaller batches. The gradient penalty is lazy. The energy
    network also denoises, which makes its features robust to noise.
    """
    network = dataclasses.replace(network, energy_denoises=True)
    return TrainConfig(recipe=recipe, network=network, data="", steps=steps, batch_size=32, likelihood_floor=0.01,
                       penalty_every=4, denoise_weight=0.1, ema_decay=0.9995)  # fmt: skip


def cifar10() -> TrainConfig:
    """CIFAR-10, 50,000 training images, at the paper's model size, for four GPUs of 32 GB (docs/training.md)."""
    return _paper("cifar10", size=32, images=50_000, epochs=1_300, batch_size=64, lr=1e-4, gamma=0.02, ema_decay=0.9999,
                  widths=(128, 256, 256, 256), norm_groups=32)  # fmt: skip


def celeba64() -> TrainConfig:
    """CelebA at 64x64, 162,770 training images, at the paper's model size, for four GPUs of 24 GB."""
    return _paper("celeba64", size=64, images=162_770, epochs=600, batch_size=32, lr=5e-5, gamma=0.002, ema_decay=0.999,
                  widths=(64, 64, 128, 128, 256), norm_groups=16)  # fmt: skip


def lsun_church128() -> TrainConfig:
    """LSUN church outdoor at 128x128, 126,227 training images, at the paper's model size, for four GPUs of 40 GB.

    It has no input pyramid (docs/training.md).
    """
    return _paper("lsun_church128", size=128, images=126_227, epochs=500, batch_size=12, lr=5e-5, gamma=0.005,
                  ema_decay=0.999, widths=(64, 128, 128, 256, 256), norm_groups=16, pyramid=False)  # fmt: skip


def _paper(
    recipe: str, *, size: int, images: int, epochs: int, batch_size: int, lr: float, gamma: float, ema_decay: float,
    widths: tuple[int, ...], norm_groups: int, pyramid: bool = True,
) -> TrainConfig:  # fmt: skip
    """The paper's settings, and a U-Net like the paper's (NCSN++ with the latent of DDGAN).

    Args:
        images: Size of the data set. A fifth is held out. An epoch is the number of whole batches of four processes in
            the rest; set `steps` yourself for other data or another number of processes.
        norm_groups: Must leave at least four channels per group.
    """
    # Of the six middle blocks, two count as the coarsest level's way down and two as its way up.
    network = ModelConfig(data_shape=(3, size, size), latent_dim=100, widths=widths, embed_dim=256, patch_size=1,
                          blocks_per_level=2, middle_blocks=6, norm_groups=norm_groups, attention=(16,),
                          resample="fir", pyramid=pyramid, mapping_depth=4)  # fmt: skip
    steps = epochs * ((images - images // 5) // (4 * batch_size))
    return TrainConfig(recipe=recipe, network=network, data="", steps=steps, batch_size=batch_size, lr_generator=lr,
                       lr_energy=lr, gradient_penalty="conditional", gamma=gamma, ema_decay=ema_decay,
                       log_every=100, sample_every=5_000, checkpoint_every=1_000)  # fmt: skip


def images(form: Contract) -> TrainConfig:
    """The user's own images, grey or colour, 16 to 128 pixels per side; a few hours on two cores.

    The first convolution folds 2x2 pixels (4x4 if a side is above 64). Each further level halves the sides until they
    are at most 8. For 28x28 this is the network of `fashion_mnist`.

    Raises:
        ConfigError: A side is out of range or is not a multiple of what the network needs.
    """
    largest, smallest = max(form.height, form.width), min(form.height, form.width)
    patch = 2 if largest <= 64 else 4
    unit = 2 * patch
    if smallest < 16 or largest > 128 or form.height % unit or form.width % unit:
        nearest = min(max(round(largest / unit) * unit, 16), 128)
        raise ConfigError(
            f"images are {form.width}x{form.height}: this recipe takes sides of 16 to 64 that are multiples of 4,"
            f" and up to 128 that are multiples of 8; give --size {nearest}, or WIDTHxHEIGHT"
        )
    widths, (height, width) = [32 if form.channels == 1 else 48], (form.height // patch, form.width // patch)
    while max(height, width) > 8 and height % 2 == width % 2 == 0:
        widths.append(2 * widths[-1])
        height, width = height // 2, width // 2
    network = ModelConfig(data_shape=(form.channels, form.height, form.width), patch_size=patch, widths=tuple(widths))
    return _found("images", network, steps=8_000)


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "debug": debug,
    "toy": toy,
    "toy-paper": toy_paper,
    "fashion-mnist": fashion_mnist,
    "fashion-mnist-paper": fashion_mnist_paper,
    "cifar10": cifar10,
    "celeba64": celeba64,
    "lsun_church128": lsun_church128,
}
IMAGES = "images"  # its network depends on the data, so it is not in RECIPES


def make_config(recipe: str, form: Contract | None = None) -> TrainConfig:
    """Make the config of a recipe.

    Args:
        form: Size and channels of the data; for the recipe `images` only.

    Raises:
        ConfigError: There is no such recipe, or `images` does not support this size.
    """
    if recipe == IMAGES:
        if form is None:
            raise ConfigError(f"the recipe {IMAGES} takes its network from the data: it needs --data PATH")
        return images(form)
    if recipe not in RECIPES:
        raise ConfigError(f"no recipe {recipe!r}; there are {', '.join([*RECIPES, IMAGES])}")
    return RECIPES[recipe]()
