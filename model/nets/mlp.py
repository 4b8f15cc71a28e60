"""The MLP that generator, energy network and encoder use for points."""

import itertools
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddaebm.model.config import ModelConfig


class MLP(nn.Module):
    """Points (B, in) and transition index k (B,) -> output (B, out) and last hidden layer (B, F).

    The transition shifts each hidden layer by a learned vector, from a table with one row per transition.

    A plain MLP learns fine structure very slowly (Rahaman et al. 2019, *On the Spectral Bias of Neural Networks*).
    With `config.frequency` > 0 the first layer starts with weights of random direction and of all scales up to it.

    With `config.linear_skip` a linear map of the input is added to the output. There is one map per transition, and it
    starts at zero. In many dimensions a few hundred hidden units cannot represent a linear map.

    Args:
        sines: Use a sine after the first layer and ReLUs after the others, in place of SiLUs.
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
        self.skip = None
        if config.linear_skip:
            self.skip = nn.Linear(in_dim, config.num_steps * out_dim)
            nn.init.zeros_(self.skip.weight)
            nn.init.zeros_(self.skip.bias)
        if config.frequency:
            _spread(cast(nn.Linear, self.layers[0]), config.frequency)

    def forward(self, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Output (B, out) and last hidden layer (B, F)."""
        h = x
        for i, (layer, shift) in enumerate(zip(self.layers, self.shifts, strict=True)):
            activation = F.silu if not self.sines else F.relu if i else torch.sin
            h = activation(layer(h) + shift(k))
        out = self.head(h)
        if self.skip is not None:
            every = self.skip(x).view(len(x), -1, out.shape[1])  # (B, T, out)
            out = out + every[torch.arange(len(x), device=k.device), k]
        return out, h


@torch.no_grad()
def _spread(layer: nn.Linear, frequency: float, reach: float = 2.0) -> None:
    """Initialise the layer with rows of random direction and of log-uniform norm in [1, frequency].

    The biases place the zero of each row at a random point of the cube [-reach, reach]^in.
    """
    direction = F.normalize(torch.randn_like(layer.weight), dim=1)
    layer.weight.copy_(direction * frequency ** torch.rand(len(direction), 1))
    layer.bias.copy_(-(layer.weight * torch.empty_like(layer.weight).uniform_(-reach, reach)).sum(1))
