"""The three networks: shapes, what each output depends on, and gradients that reach everything."""

import dataclasses
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from ddaebm.model.config import ModelConfig
from ddaebm.model.nets.networks import Generator, Networks

IMAGES = ModelConfig(data_shape=(3, 16, 8), latent_dim=6, embed_dim=16, widths=(8, 16), blocks_per_level=1,
                     middle_blocks=1, norm_groups=4)  # fmt: skip
PAPER = dataclasses.replace(IMAGES, patch_size=1, attention=(8,), resample="fir", pyramid=True, mapping_depth=4)
POINTS = ModelConfig(data_shape=(2,), latent_dim=6, embed_dim=16, widths=(20, 12))
FINE = dataclasses.replace(POINTS, frequency=20.0, energy_curvature=10.0)
BOTH = pytest.mark.parametrize(
    "config", [IMAGES, PAPER, POINTS, FINE], ids=["images", "paper's images", "points", "fine points"]
)


def perturbed(config: ModelConfig) -> Networks:
    """Random networks whose zero-initialised weights have left zero, as after one step."""
    torch.manual_seed(0)
    networks = Networks(config)
    with torch.no_grad():
        for parameter in networks.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return networks


def inputs(config: ModelConfig, batch: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    x_t, x_tp1 = (torch.randn(batch, *config.data_shape, generator=rng) for _ in range(2))
    return x_t, x_tp1, torch.randn(batch, config.latent_dim, generator=rng), torch.arange(batch) % config.num_steps


@BOTH
def test_shapes(config: ModelConfig) -> None:
    networks, (x_t, x_tp1, z, k) = Networks(config), inputs(config)
    assert networks.generator(x_tp1, z, k).shape == x_t.shape
    assert networks.energy_net(x_t, k).shape == (4,)
    mean, log_var = networks.encoder(x_t, x_tp1, k)
    assert mean.shape == log_var.shape == (4, 6)
    levels = networks.energy_net.levels(x_t, k)
    assert levels.energy_map.shape == ((4, 16, 8) if config.is_image else (4, 1))
    assert levels.features.shape == (4, config.widths[-1])


def test_a_linear_skip_begins_at_nothing_and_is_a_map_for_each_transition() -> None:
    plain, (_, x_tp1, z, k) = Generator(POINTS), inputs(POINTS)
    linear = Generator(dataclasses.replace(POINTS, linear_skip=True))
    linear.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(linear(x_tp1, z, k), plain(x_tp1, z, k))
    skip = cast(nn.Linear, linear.backbone.skip)
    nn.init.normal_(skip.weight)
    nn.init.normal_(skip.bias)
    weight, bias = skip.weight.view(POINTS.num_steps, 2, -1), skip.bias.view(POINTS.num_steps, 2)
    wanted = torch.einsum("boi,bi->bo", weight[k], torch.cat([x_tp1, z], 1)) + bias[k]
    torch.testing.assert_close(linear(x_tp1, z, k) - plain(x_tp1, z, k), wanted)


@pytest.mark.parametrize("widths", [(8,), (8, 8), (8, 16, 8)])
@pytest.mark.parametrize(("patch_size", "num_steps"), [(1, 1), (2, 3)])
def test_any_number_of_levels_and_steps(widths: tuple[int, ...], patch_size: int, num_steps: int) -> None:
    config = ModelConfig(data_shape=(1, 8, 16), num_steps=num_steps, latent_dim=3, embed_dim=8, widths=widths,
                         patch_size=patch_size, blocks_per_level=2, middle_blocks=2, norm_groups=4)  # fmt: skip
    networks, (x_t, x_tp1, z, k) = Networks(config), inputs(config)
    assert networks.generator(x_tp1, z, k).shape == x_t.shape
    assert networks.energy_net(x_t, k).shape == (4,)
    assert networks.encoder(x_t, x_tp1, k)[0].shape == (4, 3)


@BOTH
def test_energy_map_sums_to_the_energy(config: ModelConfig) -> None:
    x_t, _, _, k = inputs(config)
    energy_net = perturbed(config).energy_net
    levels = energy_net.levels(x_t, k)
    torch.testing.assert_close(levels.energy_map.flatten(1).sum(1), levels.energies)
    assert torch.equal(energy_net(x_t, k), levels.energies)


def test_image_energy_is_half_the_squared_distance_to_what_the_network_returns() -> None:
    x_t, _, _, k = inputs(IMAGES)
    energy_net = perturbed(IMAGES).energy_net
    h, _ = energy_net.backbone(x_t, energy_net.embed(k))
    torch.testing.assert_close(energy_net(x_t, k), 0.5 * (x_t - h).square().sum((1, 2, 3)))


def test_generated_images_lie_in_the_unit_range_and_points_anywhere() -> None:
    for config, bounded in ((IMAGES, True), (POINTS, False)):
        _, x_tp1, z, k = inputs(config, 64)
        assert (perturbed(config).generator(100 * x_tp1, z, k).abs().max() <= 1) == bounded


@BOTH
@pytest.mark.parametrize("name", ["generator", "energy_net", "encoder"])
def test_gradient_reaches_every_parameter(config: ModelConfig, name: str) -> None:
    networks, (x_t, x_tp1, z, k) = perturbed(config), inputs(config)
    calls = {"generator": (x_tp1, z, k), "energy_net": (x_t, k), "encoder": (x_t, x_tp1, k)}
    network: nn.Module = networks[name]
    out = network(*calls[name])
    sum(part.square().sum() for part in (out if isinstance(out, tuple) else (out,))).backward()
    unreached = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert unreached == []


@BOTH
def test_outputs_depend_on_every_input(config: ModelConfig) -> None:
    networks, (x_t, x_tp1, z, k) = perturbed(config), inputs(config)
    other_k = (k + 1) % config.num_steps

    def moved(a: Tensor, b: Tensor) -> bool:
        return bool(((a - b).flatten(1).abs().amax(1) > 1e-4).all())

    g, e = networks.generator, networks.energy_net
    assert moved(g(x_tp1, z, k), g(x_t, z, k))
    assert moved(g(x_tp1, z, k), g(x_tp1, -z, k))
    assert moved(g(x_tp1, z, k), g(x_tp1, z, other_k))
    assert moved(e(x_t, k)[:, None], e(x_t, other_k)[:, None])
    for part in (0, 1):
        r = [networks.encoder(*call)[part] for call in ((x_t, x_tp1, k), (x_t, x_tp1, other_k), (x_tp1, x_t, k))]
        assert moved(r[0], r[1])
        assert moved(r[0], r[2])


@BOTH
def test_a_sample_depends_on_nothing_else_in_its_batch(config: ModelConfig) -> None:
    networks, (x_t, x_tp1, z, k) = perturbed(config), inputs(config)
    whole = networks.generator(x_tp1, z, k), networks.energy_net(x_t, k), networks.encoder(x_t, x_tp1, k)[0]
    for i in range(len(k)):
        one = slice(i, i + 1)
        torch.testing.assert_close(networks.generator(x_tp1[one], z[one], k[one]), whole[0][one])
        torch.testing.assert_close(networks.energy_net(x_t[one], k[one]), whole[1][one])
        torch.testing.assert_close(networks.encoder(x_t[one], x_tp1[one], k[one])[0], whole[2][one])


@pytest.mark.parametrize("config", [IMAGES, PAPER], ids=["images", "paper's images"])
def test_state_dict_carries_learned_values_alone(config: ModelConfig) -> None:
    """Sinusoids and filters are recomputed, so a checkpoint cannot disagree with the code about them."""
    networks = Networks(config)
    assert set(networks.state_dict()) == {name for name, _ in networks.named_parameters()}
