"""NICE, whose log-likelihood is exact (Dinh et al. 2014, *NICE: Non-linear Independent Components Estimation*)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ddaebm.model.nets.networks import EnergyNet, Levels
from ddaebm.model.noise import random_word
from ddaebm.training.data import batch_at, to_tensor
from ddaebm.training.reproduce.figure import fit, seeded

NOISE = 0.2  # std, in [-1, 1], added to the images that the true flow learns: no direction in which they are a needle
BATCH = 256
LOGISTIC_STD = math.pi / 3**0.5  # of a standard logistic


class Nice(nn.Module):
    """Additive couplings, each adding to one half of the coordinates a function of the other, then a scale for each.

    The density is that of z = f(x) under independent standard logistics, times the scales. One flow for each of
    `levels` transitions k, which a coupling's network sees: its own density, exact like the others'.

    Args:
        spread: standard deviations, one a level, that coordinates have in the beginning: scales learn slowly.
    """

    def __init__(self, dim: int, spread: Sequence[float], width: int = 256, couplings: int = 4) -> None:
        super().__init__()
        self.levels, self.odd = (levels := len(spread)), dim // 2
        sizes = [(dim - self.odd, self.odd) if i % 2 else (self.odd, dim - self.odd) for i in range(couplings)]
        self.couplings = nn.ModuleList(
            nn.Sequential(nn.Linear(seen + levels, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                          nn.Linear(width, moved))
            for seen, moved in sizes
        )  # fmt: skip
        log_scale = torch.log(LOGISTIC_STD / torch.tensor(spread))
        self.log_scale = nn.Parameter(log_scale[:, None].repeat(1, dim))

    def log_prob(self, x: Tensor, k: Tensor) -> Tensor:
        """Nats, (B,), of x (B, D) at levels k (B,)."""
        a, b = self._halves(x)
        for i, coupling in enumerate(self.couplings):
            a, b = (a, b + self._shift(coupling, a, k)) if i % 2 == 0 else (a + self._shift(coupling, b, k), b)
        z = torch.cat([a, b], 1) * self.log_scale[k].exp()
        return (self.log_scale[k] - F.softplus(z) - F.softplus(-z)).sum(1)

    @torch.no_grad()
    def invert(self, z: Tensor, k: Tensor) -> Tensor:
        """The x (B, D) that `log_prob` takes to z (B, D)."""
        z = z * (-self.log_scale[k]).exp()
        a, b = z[:, : self.odd], z[:, self.odd :]
        for i, coupling in reversed(list(enumerate(self.couplings))):
            a, b = (a, b - self._shift(coupling, a, k)) if i % 2 == 0 else (a - self._shift(coupling, b, k), b)
        x = torch.empty_like(z)
        x[:, 1::2], x[:, ::2] = a, b
        return x

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, 1::2], x[:, ::2]  # neighbouring pixels tell of each other

    def _shift(self, coupling: nn.Module, seen: Tensor, k: Tensor) -> Tensor:
        shift: Tensor = coupling(torch.cat([seen, F.one_hot(k, self.levels).to(seen.dtype)], 1))
        return shift


class Whitening(NamedTuple):
    """ZCA: images as coordinates of unit covariance, each still where its pixel is (as Dinh et al. 2014 did, 5.1)."""

    mean: Tensor  # (D,), of pixels in [-1, 1]
    whitening: Tensor  # (D, D), symmetric, as is its inverse
    colouring: Tensor

    @classmethod
    def of(cls, images: NDArray[np.uint8]) -> Self:
        """Of images (N, H, W, 1) with noise."""
        x = to_tensor(images).flatten(1).double()
        values, vectors = torch.linalg.eigh(torch.cov(x.T))
        std = (values.clamp_min(0) + NOISE**2).sqrt()
        return cls(*(part.float() for part in (x.mean(0), (vectors / std) @ vectors.T, (vectors * std) @ vectors.T)))

    def whiten(self, x: Tensor) -> Tensor:
        """Pixels (N, D) -> coordinates (N, D)."""
        return (x - self.mean) @ self.whitening

    def pixels(self, white: Tensor) -> Tensor:
        return white @ self.colouring + self.mean


class FlowEnergy(EnergyNet):
    """E(x, k) = -log p(x) of a flow: an energy whose normaliser is known, which training makes no use of."""

    def __init__(self, flow: Nice) -> None:
        nn.Module.__init__(self)
        self.flow = flow

    def _read(self, x_t: Tensor, k: Tensor, *x_tp1: Tensor) -> tuple[Levels, Tensor]:
        energy = -self.flow.log_prob(x_t, k)
        return Levels(energy, energy[:, None], x_t), x_t[:, :0]


def fit_truth(
    out: Path, images: NDArray[np.uint8], whitening: Whitening, steps: int, seed: int, device: torch.device
) -> Nice:
    """A flow of maximum likelihood on images (N, H, W, 1) with noise, whitened; what came of it is the truth, good or
    bad."""
    flow = seeded(seed, lambda: Nice(images[0].size, [1.0]), device)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)

    def step(i: int) -> None:
        x = to_tensor(batch_at(images, i, BATCH, seed)).flatten(1)
        (noise,) = normals(seed, i, tuple(x.shape))
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - i / steps)
        white = whitening.whiten(x + NOISE * noise).to(device)
        loss = -flow.log_prob(white, torch.zeros(len(x), dtype=torch.long, device=device))
        optimizer.zero_grad()
        loss.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    fit(out / "truth.pt", "the true flow, steps", flow, [optimizer], steps, step)
    return flow


def draws(flow: Nice, count: int, seed: int, device: torch.device) -> NDArray[np.float32]:
    """Exact samples (count, D)."""
    uniform = np.random.default_rng(seed).uniform(1e-7, 1 - 1e-7, (count, flow.log_scale.shape[1]))
    z = torch.from_numpy(np.log(uniform / (1 - uniform)).astype(np.float32)).to(device)
    x: NDArray[np.float32] = flow.invert(z, torch.zeros(count, dtype=torch.long, device=device)).cpu().numpy()
    return x


def normals(seed: int, step: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    rng = torch.Generator().manual_seed(random_word(seed, step + 1))
    return [torch.randn(shape, generator=rng) for shape in shapes]


@torch.no_grad()
def mean_log_prob(flow: Nice, x: NDArray[np.float32]) -> float:
    """Of points (N, D) at level 0."""
    device = flow.log_scale.device
    blocks = torch.split(torch.from_numpy(x), 1_000)
    values = [flow.log_prob(b.to(device), torch.zeros(len(b), dtype=torch.long, device=device)) for b in blocks]
    return float(torch.cat(values).double().mean())
