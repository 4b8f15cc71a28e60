"""Layers: their initial outputs and their invariances."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddaebm.model.config import ModelConfig
from ddaebm.model.nets.blocks import AdaptiveNorm, Attention, Halve, LatentMapping, ResBlock, StepEmbedding, Trunk, UNet
from ddaebm.model.nets.mlp import MLP

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


def test_halving_is_the_filter_1_3_3_1_both_ways_with_the_edges_repeated() -> None:
    h = torch.randn(2, 3, 6, 4)
    padded = F.pad(h, (1, 1, 1, 1), mode="replicate")
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    expected = torch.zeros(2, 3, 3, 2)
    for i in range(3):
        for j in range(2):
            window = padded[:, :, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4]
            expected[:, :, i, j] = (window * taps[:, None] * taps).sum((2, 3))
    torch.testing.assert_close(Halve()(h), expected)


def test_bilinear_doubling_is_the_same_filter_between_zeros() -> None:
    h = torch.randn(2, 1, 5, 7)
    spread = torch.zeros(2, 1, 10, 14)
    spread[:, :, ::2, ::2] = h
    kernel = 4 * Halve().kernel  # a quarter of the values are not zeros
    filtered = F.conv2d(F.pad(spread, (2, 1, 2, 1)), kernel)
    doubled = F.interpolate(h, scale_factor=2.0, mode="bilinear")
    torch.testing.assert_close(doubled[:, :, 1:-1, 1:-1], filtered[:, :, 1:-1, 1:-1])


@pytest.mark.parametrize(("resample", "side"), [(Halve(), 4), (nn.Upsample(scale_factor=2.0, mode="bilinear"), 16)])
def test_a_resampling_block_starts_as_its_resampled_skip(resample: nn.Module, side: int) -> None:
    block, x = ResBlock(8, 12, 4, 3, resample), torch.randn(2, 8, 8, 8)
    out = block(x, torch.randn(2, 3))
    assert out.shape == (2, 12, side, side)
    residue = out * math.sqrt(2) - block.skip(resample(x))
    torch.testing.assert_close(residue, block.conv2.bias[:, None, None].expand_as(residue), atol=1e-5, rtol=0)


def test_attention_is_scaled_dot_product_attention_beside_a_skip() -> None:
    attention, x, cond = Attention(8, 4, 3), torch.randn(2, 8, 4, 6), torch.randn(2, 3)
    residue = attention(x, cond) * math.sqrt(2) - x
    torch.testing.assert_close(residue, attention.out.bias[:, None, None].expand_as(x), atol=1e-5, rtol=0)
    nn.init.normal_(attention.out.weight)
    query, key, value = attention.qkv(attention.norm(x, cond)).flatten(2).transpose(1, 2).chunk(3, 2)
    h = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(attention(x, cond), (x + attention.out(h)) / math.sqrt(2))


def test_gradients_pass_twice_through_attention_and_resampling() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, patch_size=1, data_shape=(1, 4, 4), widths=(4, 4), attention=(4, 2),
                                 resample="fir", pyramid=True)  # fmt: skip
    unet = UNet(config, 1, 1).double()
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.3)
    x, cond = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((1, 1, 4, 4), (1, 8)))
    assert torch.autograd.gradgradcheck(lambda x, cond: unet(x, cond)[0], (x, cond))


def test_attention_stands_behind_each_block_at_its_heights_alone() -> None:
    config = dataclasses.replace(CONFIG, data_shape=(1, 32, 16), widths=(8, 8, 8), attention=(8, 4), blocks_per_level=2)
    assert config.heights == (16, 8, 4)
    unet = UNet(config, 1, 1)
    levels = [*unet.trunk.levels, unet.trunk.middle, *unet.levels]
    kinds = [[type(block).__name__[0] for block in level] for level in levels]
    plain, attending = list("RR"), list("RARA")
    assert kinds == [plain, attending, list("RA"), attending, plain]


def test_a_pyramid_carries_the_image_to_each_coarser_level() -> None:
    trunk = Trunk(dataclasses.replace(CONFIG, widths=(8, 8, 8), pyramid=True), 1, 1, 1)
    x, cond = torch.randn(2, 1, 16, 16), torch.randn(2, 8)
    for down in trunk.downs:
        nn.init.zeros_(down.weight)
        nn.init.zeros_(down.bias)
    first = trunk.pyramid[0](trunk.fold(x)) / math.sqrt(2)
    second = trunk.pyramid[1](first) / math.sqrt(2)
    (middle,) = trunk.middle
    h, skips = trunk(x, cond)
    torch.testing.assert_close(h, middle(second, cond))
    torch.testing.assert_close(skips[1], trunk.levels[1][0](first, cond))


def test_trunk_halves_the_side_at_each_level_and_keeps_one_skip_a_finer_level() -> None:
    h, skips = Trunk(CONFIG, 1, 1, 1)(torch.randn(2, 1, 16, 16), torch.randn(2, 8))
    assert h.shape == (2, 12, 4, 4)  # patches of 2, then one halving
    assert [skip.shape for skip in skips] == [(2, 8, 8, 8)]


def test_unet_returns_the_coarsest_feature_map() -> None:
    unet, x, cond = UNet(CONFIG, 1, 3), torch.randn(2, 1, 16, 16), torch.randn(2, 8)
    out, coarsest = unet(x, cond)
    assert out.shape == (2, 3, 16, 16)
    torch.testing.assert_close(coarsest, unet.trunk(x, cond)[0])


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
