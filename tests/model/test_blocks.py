"""Layers: how they start, and what they are blind to."""

import math

import pytest
import torch
import torch.nn.functional as F

from model.blocks import MLP, AdaptiveNorm, LatentMapping, ResBlock, StepEmbedding, Trunk, UNet
from model.config import ModelConfig

CONFIG = ModelConfig(data_shape=(1, 16, 16), embed_dim=8, widths=(8, 12), blocks_per_level=1, middle_blocks=1,
                     norm_groups=4)  # fmt: skip


@pytest.mark.parametrize("num_steps", [1, 2, 8])
def test_step_embedding_tells_every_transition_apart(num_steps: int) -> None:
    embedding = StepEmbedding(num_steps, 8)
    assert embedding.table.shape == (num_steps, 8)
    assert embedding(torch.tensor([0, num_steps - 1])).shape == (2, 8)
    assert len(torch.unique(embedding(torch.arange(num_steps)), dim=0)) == num_steps


def test_step_embedding_table_is_sinusoids_from_slow_to_fast() -> None:
    angles = 3 * torch.tensor([1e4 ** (-i / 4) for i in range(4)])
    torch.testing.assert_close(StepEmbedding(5, 8).table[3], torch.cat([angles.sin(), angles.cos()]))


def test_latent_mapping_sees_the_direction_of_z_alone() -> None:
    mapping, z = LatentMapping(5, 8), torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mapping(z), mapping(7 * z))
    assert (mapping(z) - mapping(-z)).abs().max() > 1e-4
    assert mapping(torch.zeros(1, 5)).isfinite().all()


def test_adaptive_norm_is_group_norm_scaled_and_shifted_by_the_condition() -> None:
    norm = AdaptiveNorm(8, 4, 3)
    h, cond = torch.randn(2, 8, 4, 4), torch.randn(2, 3)
    scale, shift = norm.style(cond)[:, :, None, None].chunk(2, 1)
    expected = F.group_norm(h, 4, eps=1e-6) * (1 + scale) + shift
    torch.testing.assert_close(norm(h, cond), expected)
    out = norm(h.contiguous(memory_format=torch.channels_last), cond)
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("out_channels", [8, 12])
def test_residual_block_starts_as_its_skip_up_to_a_bias(out_channels: int) -> None:
    block = ResBlock(8, out_channels, 4, 3)
    x, cond = torch.randn(2, 8, 4, 4), torch.randn(2, 3)
    residue = block(x, cond) * math.sqrt(2) - block.skip(x)
    torch.testing.assert_close(residue, block.conv2.bias[:, None, None].expand_as(residue), atol=1e-5, rtol=0)


def test_trunk_halves_the_side_at_each_level_and_keeps_one_skip_a_finer_level() -> None:
    h, skips = Trunk(CONFIG, 1, 1, 1)(torch.randn(2, 1, 16, 16), torch.randn(2, 8))
    assert h.shape == (2, 12, 4, 4)  # patches of 2, then one halving
    assert [skip.shape for skip in skips] == [(2, 8, 8, 8)]


def test_unet_features_are_the_coarsest_level_averaged_over_space() -> None:
    unet, x, cond = UNet(CONFIG, 1, 3), torch.randn(2, 1, 16, 16), torch.randn(2, 8)
    out, features = unet(x, cond)
    assert out.shape == (2, 3, 16, 16)
    torch.testing.assert_close(features, unet.trunk(x, cond)[0].mean((2, 3)))


def test_every_output_pixel_sees_the_whole_image() -> None:
    torch.manual_seed(0)
    unet, x = UNet(CONFIG, 1, 1), torch.randn(1, 1, 16, 16, requires_grad=True)
    unet(x, torch.randn(1, 8))[0][0, 0, 0, 0].backward()
    assert x.grad is not None
    assert x.grad[0, 0, -1, -1] != 0


def test_mlp_returns_its_last_hidden_layer_as_features() -> None:
    mlp = MLP(ModelConfig(data_shape=(2,), embed_dim=8, widths=(10, 6)), 2, 1)
    out, features = mlp(torch.randn(3, 2), torch.tensor([0, 3, 1]))
    assert features.shape == (3, 6)
    torch.testing.assert_close(out, mlp.head(features))


def test_a_frequency_spreads_scales_and_places_of_the_first_layer() -> None:
    torch.manual_seed(0)
    layer = MLP(ModelConfig(data_shape=(2,), widths=(4_000, 6), frequency=20.0), 2, 1).layers[0]
    lengths = layer.weight.norm(dim=1)
    assert 1 <= lengths.min() < 1.01
    assert 19.5 < lengths.max() <= 20.001
    assert lengths.log().mean().item() == pytest.approx(math.log(20) / 2, rel=0.05)  # log-uniform
    from_origin = layer.bias.abs() / lengths  # of the line where a unit is zero
    assert from_origin.max() <= 8**0.5
    assert from_origin.median() > 0.5


def test_sines_bound_the_first_layer_alone() -> None:
    config, x, k = ModelConfig(data_shape=(2,), widths=(10,), frequency=20.0), 1e3 * torch.randn(50, 2), torch.zeros(50)
    assert MLP(config, 2, 1, sines=True)(x, k.long())[1].abs().max() <= 1
    assert MLP(config, 2, 1)(x, k.long())[1].max() > 1
