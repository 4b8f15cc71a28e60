"""Layers shared by the three networks."""

import itertools
import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig


class StepEmbedding(nn.Module):
    """Transition index k (B,) -> conditioning vector (B, embed_dim): sinusoids, then two layers.

    The layers run on the few possible k, not on the batch.
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
    """Latent z (B, latent_dim) -> conditioning vector; z is put on the sphere first (StyleGAN)."""

    def __init__(self, latent_dim: int, dim: int, depth: int = 3) -> None:
        super().__init__()
        sizes = [latent_dim] + [dim] * depth
        layers = [nn.Sequential(nn.Linear(a, b), nn.SiLU()) for a, b in itertools.pairwise(sizes)]
        self.mlp = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.mlp(z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8))
        return out


class AdaptiveNorm(nn.Module):
    """Group norm whose scale and shift come from the conditioning vector."""

    def __init__(self, channels: int, groups: int, cond_dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6, affine=False)
        self.style = nn.Linear(cond_dim, 2 * channels)

    def forward(self, h: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.style(cond).chunk(2, 1)
        if torch.onnx.is_in_onnx_export() or not h.is_contiguous():  # folding would undo channels_last
            out: Tensor = self.norm(h) * (1 + scale)[:, :, None, None] + shift[:, :, None, None]
            return out
        # The batch folded into the channels makes scale and shift the norm's own, and all three one
        # operation: half the time of three.
        batch, channels, *size = h.shape
        folded = h.reshape(1, batch * channels, *size)
        groups, weight, bias = batch * self.norm.num_groups, (1 + scale).reshape(-1), shift.reshape(-1)
        return F.group_norm(folded, groups, weight, bias, self.norm.eps).reshape(h.shape)


class ResBlock(nn.Module):
    """Two convolutions beside a skip, halved in variance; starts as the skip alone, up to a bias."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, cond_dim: int) -> None:
        super().__init__()
        self.norm1 = AdaptiveNorm(in_channels, groups, cond_dim)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = AdaptiveNorm(out_channels, groups, cond_dim)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x, cond)))
        h = self.conv2(F.silu(self.norm2(h, cond)))
        out: Tensor = (self.skip(x) + h) / math.sqrt(2)
        return out


class Trunk(nn.Module):
    """The contracting half: pixels -> features at the coarsest level, and one skip a finer level."""

    def __init__(self, config: ModelConfig, in_channels: int, blocks_per_level: int, middle_blocks: int) -> None:
        super().__init__()
        widths, groups, cond_dim = config.widths, config.norm_groups, config.embed_dim
        self.fold = nn.PixelUnshuffle(config.patch_size)
        self.stem = nn.Conv2d(in_channels * config.patch_size**2, widths[0], 3, padding=1)

        def stack(width: int, count: int) -> nn.ModuleList:
            return nn.ModuleList(ResBlock(width, width, groups, cond_dim) for _ in range(count))

        self.levels = nn.ModuleList(stack(width, blocks_per_level) for width in widths[:-1])
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(widths))
        self.middle = stack(widths[-1], middle_blocks)

    def forward(self, x: Tensor, cond: Tensor) -> tuple[Tensor, list[Tensor]]:
        h = self.stem(self.fold(x))
        skips = []
        for level, down in zip(self.levels, self.downs, strict=True):
            for block in cast(nn.ModuleList, level):
                h = block(h, cond)
            skips.append(h)
            h = down(h)
        for block in self.middle:
            h = block(h, cond)
        return h, skips


class UNet(nn.Module):
    """Images (B, in, H, W) and a conditioning vector -> images (B, out, H, W) and features (B, F).

    The features are the coarsest level, averaged over space.
    """

    def __init__(self, config: ModelConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        widths, groups, cond_dim = config.widths, config.norm_groups, config.embed_dim
        self.trunk = Trunk(config, in_channels, config.blocks_per_level, config.middle_blocks)
        fine_to_coarse = list(itertools.pairwise(widths))
        self.ups = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in reversed(fine_to_coarse))
        self.levels = nn.ModuleList(
            nn.ModuleList(
                ResBlock(2 * width if i == 0 else width, width, groups, cond_dim)
                for i in range(config.blocks_per_level)
            )
            for width in reversed(widths[:-1])
        )
        self.norm = AdaptiveNorm(widths[0], groups, cond_dim)
        self.head = nn.Conv2d(widths[0], out_channels * config.patch_size**2, 3, padding=1)
        self.unfold = nn.PixelShuffle(config.patch_size)

    def forward(self, x: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        h, skips = self.trunk(x, cond)
        features = h.mean((2, 3))
        for up, level in zip(self.ups, self.levels, strict=True):
            h = up(F.interpolate(h, scale_factor=2.0, mode="nearest"))
            h = torch.cat([h, skips.pop()], 1)
            for block in cast(nn.ModuleList, level):
                h = block(h, cond)
        return self.unfold(self.head(F.silu(self.norm(h, cond)))), features


class MLP(nn.Module):
    """Points (B, in) and transition index k (B,) -> (B, out) and the last hidden layer (B, F).

    A plain MLP learns coarse structure first and fine structure hardly at all (Rahaman et al. 2019,
    *On the Spectral Bias of Neural Networks*). With `config.frequency` > 1 the first layer begins with
    weights of random direction and of every scale up to it, and with `sines` it ends in a sine, the
    later ones in a ReLU.

    A table of one row a transition shifts each hidden layer: T is small and fixed.
    """

    def __init__(self, config: ModelConfig, in_dim: int, out_dim: int, sines: bool = False) -> None:
        super().__init__()
        self.sines = sines
        sizes = (in_dim, *config.widths)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.shifts = nn.ModuleList(nn.Embedding(config.num_steps, width) for width in config.widths)
        self.head = nn.Linear(config.widths[-1], out_dim)
        for shift in self.shifts:
            nn.init.normal_(cast(nn.Embedding, shift).weight, std=0.1)
        if config.frequency:
            _spread(cast(nn.Linear, self.layers[0]), config.frequency)

    def forward(self, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        h = x
        for i, (layer, shift) in enumerate(zip(self.layers, self.shifts, strict=True)):
            activation = F.silu if not self.sines else F.relu if i else torch.sin
            h = activation(layer(h) + shift(k))
        return self.head(h), h


@torch.no_grad()
def _spread(layer: nn.Linear, frequency: float, reach: float = 2.0) -> None:
    """Rows of random direction, length log-uniform in 1..frequency, zero somewhere in the cube [-reach, reach]^in."""
    direction = F.normalize(torch.randn_like(layer.weight), dim=1)
    layer.weight.copy_(direction * frequency ** torch.rand(len(direction), 1))
    layer.bias.copy_(-(layer.weight * torch.empty_like(layer.weight).uniform_(-reach, reach)).sum(1))
