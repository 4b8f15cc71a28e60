"""The graphs of a bundle as torch modules. Export traces them to ONNX; the torch engine runs them directly."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddaebm.model.config import ModelConfig
from ddaebm.model.images.arrays import to_unit
from ddaebm.model.nets.networks import EnergyNet, Generator
from ddaebm.model.sampling import Noise, sample
from ddaebm.model.schedule import make_schedule

LEVEL = 1  # of the four, the one whose activations told faults of surfaces best (docs/ood.md)


class SamplerGraph(nn.Module):
    """The whole reverse process: the noise of `model.sampling.Noise` -> uint8 images (B, H, W, C)."""

    def __init__(self, generator: Generator, config: ModelConfig) -> None:
        super().__init__()
        self.generator = generator
        self.schedule = make_schedule(config)

    def forward(self, x_T: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        def call(x_tp1: Tensor, z: Tensor, k: int) -> Tensor:
            # k has length 1, not B, so that the ONNX exporter folds its embedding into constants. It is created on
            # the device, because a CUDA graph cannot contain a copy from pageable host memory.
            x0_hat: Tensor = self.generator(x_tp1, z, torch.full((1,), k, device=x_tp1.device))
            return x0_hat

        return to_pixels(sample(call, self.schedule, Noise(x_T, z, noise)))


class EnergyGraph(nn.Module):
    """uint8 images (B, H, W, C) -> energies (B, T), energy map (B, T, H, W), features (B, T, F).

    The input of level k is sqrt(alpha_bar[k])·x_clean, state k without its noise.
    """

    scales: Tensor

    def __init__(self, energy_net: EnergyNet, config: ModelConfig) -> None:
        super().__init__()
        self.energy_net = energy_net
        self.num_steps = config.num_steps
        scales = torch.as_tensor(make_schedule(config).alpha_bar[:-1] ** 0.5, dtype=torch.float32)
        self.register_buffer("scales", scales)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_clean = to_unit(images.permute(0, 3, 1, 2).float())
        x_t = (x_clean[:, None] * self.scales[:, None, None, None]).flatten(0, 1)  # (B·T, C, H, W)
        k = torch.arange(self.num_steps, device=images.device).repeat(images.shape[0])
        levels = self.energy_net.levels(x_t, k)
        outputs = levels.energies, levels.energy_map, levels.features
        energies, energy_map, features = (part.reshape(-1, self.num_steps, *part.shape[1:]) for part in outputs)
        return energies, energy_map, features


class PlacesGraph(nn.Module):
    """uint8 images (B, H, W, C) of any size -> what the energy network sees at each place, (B, 2A, h, w).

    The places are those of the coarsest resolution. The first A channels are the activations of all resolutions of the
    contracting half, averaged over a place, and the last A their mean squares. The level is `LEVEL`, without noise.
    """

    def __init__(self, energy_net: EnergyNet, config: ModelConfig) -> None:
        super().__init__()
        self.energy_net = energy_net
        self.level = min(LEVEL, config.num_steps - 1)
        self.scale = float(make_schedule(config).alpha_bar[self.level] ** 0.5)
        self.fold = config.fold

    def forward(self, images: Tensor) -> Tensor:
        x_t = to_unit(images.permute(0, 3, 1, 2).float()) * self.scale
        activations = self.energy_net.activations(x_t, torch.full((1,), self.level, device=images.device))
        pooled = [
            F.avg_pool2d(values, 2 ** (len(activations) - 1 - i))
            for square in (False, True)
            for i, values in enumerate(h.square() if square else h for h in activations)
        ]
        return torch.cat(pooled, 1)


def to_pixels(samples: Tensor) -> Tensor:
    """Convert float (B, C, H, W) in [-1, 1] to uint8 (B, H, W, C); the inverse of `to_unit`, with clipping."""
    return ((samples + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
