"""The network for points, shared by all three."""

import itertools
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddaebm.model.config import ModelConfig


class MLP(nn.Module):
    """Points (B, in) and transition index k (B,) -> (B, out) and the last hidden layer (B, F).

    A plain MLP learns coarse structure first and fine structure hardly at all (Rahaman et al. 2019,
    *On the Spectral Bias of Neural Networks*). With `config.frequency` > 1 the first layer begins with
    weights of random direction and of every scale up to it, and with `sines` it ends in a sine, the
    later ones in a ReLU.

    A table of one row a transition shifts each hidden layer: T is small and fixed. With `config.linear_skip` the
    output has a linear map of the input as well, zero in the beginning, a map for each transition: of many dimensions
    it is what a few hundred hidden units cannot be.
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
        h = x
        for i, (layer, shift) in enumerate(zip(self.layers, self.shifts, strict=True)):
            activation = F.silu if not self.sines else F.relu if i else torch.sin
            h = activation(layer(h) + shift(k))
        out = self.head(h)
        if self.skip is not None:
            every = self.skip(x).view(len(x), -1, out.shape[1])
            out = out + every[torch.arange(len(x), device=k.device), k]
        return out, h


@torch.no_grad()
def _spread(layer: nn.Linear, frequency: float, reach: float = 2.0) -> None:
    """Rows of random direction, length log-uniform in 1..frequency, zero somewhere in the cube [-reach, reach]^in."""
    direction = F.normalize(torch.randn_like(layer.weight), dim=1)
    layer.weight.copy_(direction * frequency ** torch.rand(len(direction), 1))
    layer.bias.copy_(-(layer.weight * torch.empty_like(layer.weight).uniform_(-reach, reach)).sum(1))
