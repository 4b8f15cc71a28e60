"""Generator, energy network and encoder: three thin heads on one backbone."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddaebm.model.config import ModelConfig
from ddaebm.model.nets.blocks import LatentMapping, StepEmbedding, Trunk, UNet
from ddaebm.model.nets.mlp import MLP


class Generator(nn.Module):
    """G(x_tp1, z, k) -> x0_hat, the implicit half of p_phi(x_t | x_tp1).

    Images: z is put on the sphere and conditions every block. Points: z is an input like x_tp1, since a
    sphere would take one of its few dimensions away.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.data_shape[0]
        self.is_image = config.is_image
        self.backbone: nn.Module
        if config.is_image:
            self.embed = StepEmbedding(config.num_steps, config.embed_dim)
            self.mapping = LatentMapping(config.latent_dim, config.embed_dim, config.mapping_depth)
            self.backbone = UNet(config, channels, channels)
        else:
            self.backbone = MLP(config, channels + config.latent_dim, channels, sines=config.frequency > 0)

    def forward(self, x_tp1: Tensor, z: Tensor, k: Tensor) -> Tensor:
        x0_hat: Tensor
        if self.is_image:
            x0_hat, _ = self.backbone(x_tp1, self.embed(k) + self.mapping(z))
            return x0_hat.tanh()
        x0_hat, _ = self.backbone(torch.cat([x_tp1, z], 1), k)
        return x0_hat


class Levels(NamedTuple):
    """What one forward pass of the energy network knows of B inputs."""

    energies: Tensor  # (B,)
    energy_map: Tensor  # images: (B, H, W), each pixel's share of the energy; points: (B, 1)
    features: Tensor  # (B, F)


class EnergyNet(nn.Module):
    """E(x_t, k), one scalar an input, low on data; p_theta(x_t | x_tp1) ∝ exp(-E)·q(x_tp1 | x_t).

    Images: E = ½‖x_t - h(x_t, k)‖², so that every pixel has a share. Points: the same times
    `config.energy_curvature`, or a scalar output where that is 0.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = self.channels = config.data_shape[0]
        self.is_image = config.is_image
        self.curvature = 1.0 if config.is_image else config.energy_curvature
        self.backbone: nn.Module
        if config.is_image:
            self.embed = StepEmbedding(config.num_steps, config.embed_dim)
            self.backbone = UNet(config, channels, channels * (1 + config.energy_denoises))
        else:
            seen = channels * (1 + config.energy_sees_next)
            self.backbone = MLP(config, seen, channels if self.curvature else 1)

    def levels(self, x_t: Tensor, k: Tensor) -> Levels:
        return self._read(x_t, k)[0]

    def energy_and_guess(self, x_t: Tensor, k: Tensor, *x_tp1: Tensor) -> tuple[Tensor, Tensor]:
        """E (B,) and, with `config.energy_denoises`, a guess of x_clean (B, C, H, W); else one of no channels.

        Args:
            x_tp1: the next state, with `config.energy_sees_next`; else none.
        """
        levels, x0_guess = self._read(x_t, k, *x_tp1)
        return levels.energies, x0_guess

    def forward(self, x_t: Tensor, k: Tensor) -> Tensor:
        return self.levels(x_t, k).energies

    def _read(self, x_t: Tensor, k: Tensor, *x_tp1: Tensor) -> tuple[Levels, Tensor]:
        seen = torch.cat([x_t, *x_tp1], 1) if x_tp1 else x_t
        out, features = self.backbone(seen, self.embed(k) if self.is_image else k)
        h, x0_guess = out[:, : self.channels], out[:, self.channels :]
        energy_map = 0.5 * self.curvature * (x_t - h).square().sum(1) if self.curvature else h[:, 0]
        if not self.is_image:
            return Levels(energy_map, energy_map[:, None], features), x0_guess
        return Levels(energy_map.flatten(1).sum(1), energy_map, features), x0_guess


class Encoder(nn.Module):
    """r(z | x_t, x_tp1, k) -> (mean, log_var), each (B, latent_dim)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.data_shape[0]
        self.is_image = config.is_image
        self.backbone: nn.Module
        self.head: nn.Module
        if config.is_image:
            self.embed = StepEmbedding(config.num_steps, config.embed_dim)
            # The contracting half is enough to name a latent, and one block a level trains as well.
            self.backbone = Trunk(config, 2 * channels, blocks_per_level=1, middle_blocks=1)
            _, height, width = config.data_shape
            fold = config.patch_size * 2 ** (len(config.widths) - 1)
            self.head = nn.Linear(config.widths[-1] * (height // fold) * (width // fold), 2 * config.latent_dim)
        else:
            self.backbone = MLP(config, 2 * channels, 2 * config.latent_dim, sines=config.frequency > 0)
            self.head = nn.Identity()

    def forward(self, x_t: Tensor, x_tp1: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        h, _ = self.backbone(torch.cat([x_t, x_tp1], 1), self.embed(k) if self.is_image else k)
        mean, log_var = self.head(h.flatten(1)).chunk(2, 1)
        return mean, log_var


class Networks(nn.ModuleDict):
    """The three networks of `config`, by name."""

    generator: Generator
    energy_net: EnergyNet
    encoder: Encoder

    def __init__(self, config: ModelConfig) -> None:
        super().__init__({"generator": Generator(config), "energy_net": EnergyNet(config), "encoder": Encoder(config)})
