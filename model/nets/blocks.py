"""Layers shared by the three image networks."""

import itertools
import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddaebm.model.config import ModelConfig


class StepEmbedding(nn.Module):
    """Transition index k (B,) -> conditioning vector (B, embed_dim), by sinusoids and a two-layer MLP.

    The MLP runs on the T possible values of k instead of on the batch.
    """

    table: Tensor

    def __init__(self, num_steps: int, dim: int) -> None:
        super().__init__()
        frequencies = torch.exp(-math.log(1e4) * torch.arange(dim // 2) / (dim // 2))
        angles = torch.arange(num_steps)[:, None] * frequencies
        self.register_buffer("table", torch.cat([angles.sin(), angles.cos()], 1), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, k: Tensor) -> Tensor:
        return F.embedding(k, self.mlp(self.table))


class LatentMapping(nn.Module):
    """Latent z (B, latent_dim) -> conditioning vector (B, dim), by an MLP; z is normalised first, as in StyleGAN."""

    def __init__(self, latent_dim: int, dim: int, depth: int = 3) -> None:
        super().__init__()
        sizes = [latent_dim] + [dim] * depth
        layers = [nn.Sequential(nn.Linear(a, b), nn.SiLU()) for a, b in itertools.pairwise(sizes)]
        self.mlp = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.mlp(z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8))
        return out


class AdaptiveNorm(nn.Module):
    """Group norm with scale and shift predicted from the conditioning vector."""

    def __init__(self, channels: int, groups: int, cond_dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6, affine=False)
        self.style = nn.Linear(cond_dim, 2 * channels)

    def forward(self, h: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.style(cond).chunk(2, 1)
        # The reshape below would copy a channels_last tensor.
        if torch.onnx.is_in_onnx_export() or not h.is_contiguous():
            return torch.addcmul(shift[:, :, None, None], self.norm(h), (1 + scale)[:, :, None, None])
        # Fold the batch into the channels, so that scale and shift become the weight and bias of group_norm. One fused
        # operation takes half the time of three.
        batch, channels, *size = h.shape
        folded = h.reshape(1, batch * channels, *size)
        groups, weight, bias = batch * self.norm.num_groups, (1 + scale).reshape(-1), shift.reshape(-1)
        return F.group_norm(folded, groups, weight, bias, self.norm.eps).reshape(h.shape)


class Halve(nn.Module):
    """Downsample (B, C, H, W) by 2: filter with (1, 3, 3, 1) along both axes and keep every second value.

    The matching upsampling is bilinear interpolation. Edges are repeated, so that constant images stay constant.
    The filter is that of StyleGAN2 (Karras et al. 2020), after Zhang 2019, *Making Convolutional Networks
    Shift-Invariant Again*.
    """

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        channels = h.shape[1]
        padded = F.pad(h, (1, 1, 1, 1), mode="replicate")
        return F.conv2d(padded, self.kernel.expand(channels, -1, -1, -1), stride=2, groups=channels)


class ResBlock(nn.Module):
    """Residual block: (skip(x) + conv(conv(x)))/sqrt(2). The convolutional branch starts as a constant.

    `resample` changes the spatial size of both branches before the number of channels changes, as in BigGAN.
    """

    def __init__(
        self, in_channels: int, out_channels: int, groups: int, cond_dim: int, resample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.norm1 = AdaptiveNorm(in_channels, groups, cond_dim)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = AdaptiveNorm(out_channels, groups, cond_dim)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)
        self.resample = resample or nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        h = self.conv1(self.resample(F.silu(self.norm1(x, cond))))
        h = self.conv2(F.silu(self.norm2(h, cond)))
        out: Tensor = (self.skip(self.resample(x)) + h) / math.sqrt(2)
        return out


class Attention(nn.Module):
    """Residual self-attention over the positions of a feature map (B, C, H, W), with one head.

    Like `ResBlock` it starts as the skip connection plus a constant.
    """

    def __init__(self, channels: int, groups: int, cond_dim: int) -> None:
        super().__init__()
        self.norm = AdaptiveNorm(channels, groups, cond_dim)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x, cond)).flatten(2).chunk(3, 1)  # each (B, C, H·W)
        # F.scaled_dot_product_attention is not used: the gradient penalty needs second derivatives, which its fused
        # kernels do not support. With at most 256 positions plain matrix products are fast enough.
        weights = ((query / math.sqrt(query.shape[1])).transpose(1, 2) @ key).softmax(2)  # (B, H·W, H·W)
        h = (value @ weights.transpose(1, 2)).reshape(x.shape)
        out: Tensor = (x + self.out(h)) / math.sqrt(2)
        return out


def make_level(config: ModelConfig, level: int, count: int, in_channels: int | None = None) -> nn.ModuleList:
    """Make the blocks of a U-Net level: `count` residual blocks, with attention after each if `config` asks for it.

    Args:
        in_channels: Input channels of the first block; the default is the width of the level.
    """
    width, blocks = config.widths[level], nn.ModuleList()
    for i in range(count):
        before = in_channels if in_channels and i == 0 else width
        blocks.append(ResBlock(before, width, config.norm_groups, config.embed_dim))
        if config.heights[level] in config.attention:
            blocks.append(Attention(width, config.norm_groups, config.embed_dim))
    return blocks


class Trunk(nn.Module):
    """The contracting half of the U-Net.

    Maps pixels (B, in_channels, H, W) and a conditioning vector to features at the coarsest level, and to one skip
    connection for each finer level. With `config.pyramid` the downsampled input is added at each coarser level (the
    residual input pyramid of NCSN++, Song et al. 2021, after StyleGAN2).
    """

    def __init__(self, config: ModelConfig, in_channels: int, blocks_per_level: int, middle_blocks: int) -> None:
        super().__init__()
        widths, channels = config.widths, in_channels * config.patch_size**2
        self.fold = nn.PixelUnshuffle(config.patch_size)
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)

        def down(a: int, b: int) -> nn.Module:
            if config.resample == "fir":
                return ResBlock(a, b, config.norm_groups, config.embed_dim, Halve())
            return nn.Conv2d(a, b, 3, stride=2, padding=1)

        self.levels = nn.ModuleList(make_level(config, i, blocks_per_level) for i in range(len(widths) - 1))
        self.downs = nn.ModuleList(down(a, b) for a, b in itertools.pairwise(widths))
        self.middle = make_level(config, len(widths) - 1, middle_blocks)
        steps = itertools.pairwise((channels, *widths[1:])) if config.pyramid else ()
        self.pyramid = nn.ModuleList(nn.Sequential(Halve(), nn.Conv2d(a, b, 3, padding=1)) for a, b in steps)

    def forward(self, x: Tensor, cond: Tensor) -> tuple[Tensor, list[Tensor]]:
        finer = self.fold(x)
        h = self.stem(finer)
        skips = []
        for i, (level, down) in enumerate(zip(self.levels, self.downs, strict=True)):
            for block in cast(nn.ModuleList, level):
                h = block(h, cond)
            skips.append(h)
            h = down(h, cond) if isinstance(down, ResBlock) else down(h)
            if self.pyramid:
                h = finer = (self.pyramid[i](finer) + h) / math.sqrt(2)
        for block in self.middle:
            h = block(h, cond)
        return h, skips


class UNet(nn.Module):
    """Images (B, in, H, W) and a conditioning vector -> images (B, out, H, W) and the coarsest feature map."""

    def __init__(self, config: ModelConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        widths, groups, cond_dim = config.widths, config.norm_groups, config.embed_dim
        self.trunk = Trunk(config, in_channels, config.blocks_per_level, config.middle_blocks)

        def up(a: int, b: int) -> nn.Module:
            if config.resample == "fir":
                return ResBlock(a, b, groups, cond_dim, nn.Upsample(scale_factor=2.0, mode="bilinear"))
            return nn.Conv2d(a, b, 3, padding=1)

        self.ups = nn.ModuleList(up(a, b) for a, b in itertools.pairwise(reversed(widths)))
        self.levels = nn.ModuleList(
            make_level(config, i, config.blocks_per_level, in_channels=2 * widths[i])
            for i in reversed(range(len(widths) - 1))
        )
        self.norm = AdaptiveNorm(widths[0], groups, cond_dim)
        self.head = nn.Conv2d(widths[0], out_channels * config.patch_size**2, 3, padding=1)
        self.unfold = nn.PixelShuffle(config.patch_size)

    def forward(self, x: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        h, skips = self.trunk(x, cond)
        coarsest = h
        for up, level in zip(self.ups, self.levels, strict=True):
            h = up(h, cond) if isinstance(up, ResBlock) else up(F.interpolate(h, scale_factor=2.0, mode="nearest"))
            h = torch.cat([h, skips.pop()], 1)
            for block in cast(nn.ModuleList, level):
                h = block(h, cond)
        return self.unfold(self.head(F.silu(self.norm(h, cond)))), coarsest
