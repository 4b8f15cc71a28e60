"""Generator, energy network and encoder: three heads on the same kind of backbone."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddaebm.model.config import ModelConfig
from ddaebm.model.nets.blocks import LatentMapping, StepEmbedding, Trunk, UNet
from ddaebm.model.nets.mlp import MLP


class Generator(nn.Module):
    """G(x_tp1, z, k) -> x0_hat, which defines p_phi(x_t | x_tp1) through the posterior q(x_t | x_tp1, x0_hat).

    For images, z is normalised to the sphere and conditions every block. For points, z is concatenated with x_tp1,
    because normalising would remove one of its few dimensions.
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
        """Predict x_clean, (B, *data_shape), from x_tp1 of that shape, z (B, latent_dim) and k (B,)."""
        x0_hat: Tensor
        if self.is_image:
            x0_hat, _ = self.backbone(x_tp1, self.embed(k) + self.mapping(z))
            return x0_hat.tanh()
        x0_hat, _ = self.backbone(torch.cat([x_tp1, z], 1), k)
        return x0_hat


class Levels(NamedTuple):
    """Outputs of one forward pass of the energy network for B inputs."""

    energies: Tensor  # (B,)
    energy_map: Tensor  # images: (B, H, W), the energy of each pixel; points: (B, 1)
    features: Tensor  # (B, F): the coarsest feature map averaged over its places, or the last hidden layer for points


class EnergyNet(nn.Module):
    """E(x_t, k), one scalar per input, low on data; p_theta(x_t | x_tp1) ∝ exp(-E)·q(x_tp1 | x_t).

    For images, E = ½‖x_t - h(x_t, k)‖² summed over pixels, so that each pixel has its own energy. For points, E is this
    times `config.energy_curvature`, or a scalar output of the network if the curvature is 0.
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
            self.backbone = MLP(config, channels, channels if self.curvature else 1)

    def levels(self, x_t: Tensor, k: Tensor) -> Levels:
        """Energies, energy map and features of x_t (B, *data_shape) at transitions k (B,)."""
        return self._read(x_t, k)[0]

    def activations(self, x_t: Tensor, k: Tensor) -> list[Tensor]:
        """Feature maps (B, C, h, w) of the contracting half for images of any size, the coarsest last."""
        assert isinstance(self.backbone, UNet)
        h, skips = self.backbone.trunk(x_t, self.embed(k))
        return [*skips, h]

    def energy_and_guess(self, x_t: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """E(x_t, k), (B,), and the prediction of x_clean, (B, C, H, W); it has 0 channels without `energy_denoises`."""
        levels, x0_guess = self._read(x_t, k)
        return levels.energies, x0_guess

    def forward(self, x_t: Tensor, k: Tensor) -> Tensor:
        """E(x_t, k), (B,)."""
        return self.levels(x_t, k).energies

    def _read(self, x_t: Tensor, k: Tensor) -> tuple[Levels, Tensor]:
        out, hidden = self.backbone(x_t, self.embed(k) if self.is_image else k)
        h, x0_guess = out[:, : self.channels], out[:, self.channels :]
        energy_map = 0.5 * self.curvature * (x_t - h).square().sum(1) if self.curvature else h[:, 0]
        if not self.is_image:
            return Levels(energy_map, energy_map[:, None], hidden), x0_guess
        return Levels(energy_map.flatten(1).sum(1), energy_map, hidden.mean((2, 3))), x0_guess


class Encoder(nn.Module):
    """r(z | x_t, x_tp1, k), a diagonal Gaussian over the latent."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.data_shape[0]
        self.is_image = config.is_image
        self.backbone: nn.Module
        self.head: nn.Module
        if config.is_image:
            self.embed = StepEmbedding(config.num_steps, config.embed_dim)
            # A latent needs no full-size output, so the contracting half of a U-Net will do. One block per level
            # trained as well as more.
            self.backbone = Trunk(config, 2 * channels, blocks_per_level=1, middle_blocks=1)
            _, height, width = config.data_shape
            fold = config.patch_size * 2 ** (len(config.widths) - 1)
            self.head = nn.Linear(config.widths[-1] * (height // fold) * (width // fold), 2 * config.latent_dim)
        else:
            self.backbone = MLP(config, 2 * channels, 2 * config.latent_dim, sines=config.frequency > 0)
            self.head = nn.Identity()

    def forward(self, x_t: Tensor, x_tp1: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each (B, latent_dim)."""
        h, _ = self.backbone(torch.cat([x_t, x_tp1], 1), self.embed(k) if self.is_image else k)
        mean, log_var = self.head(h.flatten(1)).chunk(2, 1)
        return mean, log_var


class Networks(nn.ModuleDict):
    """The three networks of `config`, by name.

    Args:
        make_energy_net: Makes another network in place of `EnergyNet`, for experiments with other methods.
    """

    generator: Generator
    energy_net: EnergyNet
    encoder: Encoder

    def __init__(self, config: ModelConfig, make_energy_net: Callable[[ModelConfig], nn.Module] = EnergyNet) -> None:
        # A seed stands for weights that are initialised in this order.
        super().__init__(
            {"generator": Generator(config), "energy_net": make_energy_net(config), "encoder": Encoder(config)}
        )
