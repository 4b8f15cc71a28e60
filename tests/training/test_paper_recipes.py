"""The paper-size recipes: the table's settings, networks of the right kind and size, and one step of training."""

import pytest
import torch
from accelerate import Accelerator

from ddaebm.model.nets.blocks import Attention
from ddaebm.model.nets.diffusion import Diffusion
from ddaebm.model.nets.networks import Networks
from ddaebm.model.schedule import make_schedule
from ddaebm.training.recipes import make_config
from ddaebm.training.step import draw, make_state, train_step

# size, batch a process, learning rate, gamma, EMA, channels and their multiples: the paper's own table.
TABLE = {
    "cifar10": (32, 64, 1e-4, 0.02, 0.9999, 128, (1, 2, 2, 2)),
    "celeba64": (64, 32, 5e-5, 0.002, 0.999, 64, (1, 1, 2, 2, 4)),
    "lsun_church128": (128, 12, 5e-5, 0.005, 0.999, 64, (1, 2, 2, 4, 4)),
}
# Training images left by the held-out fifth, epochs.
EPOCHS = {"cifar10": (40_000, 1_300), "celeba64": (130_216, 600), "lsun_church128": (100_982, 500)}
# Parameters of generator, energy network and encoder.
SIZES = {
    "cifar10": (34_621_059, 34_397_827, 11_306_056),
    "celeba64": (18_743_939, 18_520_707, 6_193_096),
    "lsun_church128": (27_873_987, 27_650_755, 11_000_840),
}
EVERY = pytest.mark.parametrize("recipe", TABLE)


@EVERY
def test_settings_are_the_tables(recipe: str) -> None:
    config = make_config(recipe)
    network = config.network
    size, batch_size, lr, gamma, ema_decay, channels, multiples = TABLE[recipe]
    assert network.data_shape == (3, size, size)
    assert (config.batch_size, config.gamma, config.ema_decay) == (batch_size, gamma, ema_decay)
    assert config.lr_generator == config.lr_energy == lr
    assert network.widths == tuple(channels * multiple for multiple in multiples)
    assert (network.attention, network.latent_dim, network.mapping_depth) == ((16,), 100, 4)
    assert network.pyramid == (size <= 64)
    assert config.data == ""


@EVERY
def test_steps_are_the_papers_epochs_on_four_processes(recipe: str) -> None:
    config, (images, epochs) = make_config(recipe), EPOCHS[recipe]
    assert config.steps == epochs * (images // (4 * config.batch_size))  # as `training.data.batch_at` counts


@EVERY
def test_sizes_are_known_and_those_of_such_networks(recipe: str) -> None:
    with torch.device("meta"):
        networks = Networks(make_config(recipe).network)
    sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    assert tuple(sizes.values()) == SIZES[recipe]
    for name in ("generator", "energy_net"):
        assert 0.65 < sizes[name] / ncsnpp_size(recipe, latent=name == "generator") < 1.35
    attending = [name for name, module in networks.named_modules() if isinstance(module, Attention)]
    assert len(attending) == 9  # twice on each way of two U-Nets, and once in the encoder


def ncsnpp_size(recipe: str, latent: bool) -> int:
    """Parameters of an NCSN++ (Song et al. 2021) of the table's row, with DDGAN's latent or without one.

    It has a skip connection a block, and so three blocks a level on the way up, where ours has one a level.
    """
    size, *_, channels, multiples = TABLE[recipe]
    pyramid, time, style, skips = size <= 64, 4 * channels, 256, [channels]

    def conv(a: int, b: int, side: int = 3) -> int:
        return a * b * side**2 + b

    def norm(c: int) -> int:
        return 2 * c + (2 * c * style if latent else 0)

    def block(a: int, b: int, resamples: bool = False) -> int:
        shortcut = conv(a, b, 1) if a != b or resamples else 0
        return norm(a) + conv(a, b) + conv(time, b, 1) + norm(b) + conv(b, b) + shortcut

    def attention(c: int) -> int:
        return 2 * c + 4 * conv(c, c, 1)

    count = conv(channels, time, 1) + conv(time, time, 1) + conv(3, channels)
    count += conv(100, style, 1) + 3 * conv(style, style, 1) if latent else 0
    here, image = channels, 3
    for level, multiple in enumerate(multiples):
        for _ in range(2):
            count += block(here, channels * multiple)
            here = channels * multiple
            count += attention(here) if size >> level == 16 else 0
            skips.append(here)
        if level < len(multiples) - 1:
            count += block(here, here, resamples=True) + (conv(image, here) if pyramid else 0)
            image = here
            skips.append(here)
    count += 2 * block(here, here) + attention(here)
    for level, multiple in reversed(list(enumerate(multiples))):
        for _ in range(3):
            count += block(here + skips.pop(), channels * multiple)
            here = channels * multiple
        count += attention(here) if size >> level == 16 else 0
        count += block(here, here, resamples=True) if level else 0
    return count + 2 * here + conv(here, 3)


def test_cifar10_takes_a_step() -> None:
    config = make_config("cifar10")
    state = make_state(config)
    x_clean = 2 * torch.rand(1, *config.network.data_shape, generator=torch.Generator().manual_seed(0)) - 1
    diffusion = Diffusion(make_schedule(config.network))
    draws = draw(config, 0, 1, torch.device("cpu"))
    terms = train_step(config, diffusion, state, x_clean, draws, Accelerator(cpu=True))
    assert all(value.isfinite() for value in terms.values())
    assert all(parameter.isfinite().all() for parameter in state.networks.parameters())
    averaged, current = (next(net.parameters()) for net in (state.generator_ema, state.networks.generator))
    assert not torch.equal(averaged, current)
