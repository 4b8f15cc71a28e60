"""The flow of Figure 2: NICE, a model with exact log-likelihoods.

Source: Dinh et al. 2014, *NICE: Non-linear Independent Components Estimation*.
"""

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

NOISE = 0.2  # std of the noise added to images in [-1, 1], so that no direction has almost zero variance
BATCH = 256
LOGISTIC_STD = math.pi / 3**0.5  # std of the standard logistic distribution


class Nice(nn.Module):
    """NICE: additive coupling layers, then one scale for each coordinate.

    A coupling layer adds a function of one half of the coordinates to the other half. z = f(x) has independent standard
    logistic coordinates, and log p(x) is their log density plus the sum of the log scales. The coupling networks also
    see the level k, so that one network holds an exact density for each level.

    Args:
        dim: D, the number of coordinates.
        spread: Initial standard deviation of the coordinates at each level. Scales are learnt slowly, so it should be
            near that of the data.
        width: Width of the hidden layers of a coupling network.
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
        """Log density in nats, (B,), of x (B, D) at levels k (B,)."""
        a, b = self._halves(x)
        for i, coupling in enumerate(self.couplings):
            a, b = (a, b + self._shift(coupling, a, k)) if i % 2 == 0 else (a + self._shift(coupling, b, k), b)
        z = torch.cat([a, b], 1) * self.log_scale[k].exp()
        return (self.log_scale[k] - F.softplus(z) - F.softplus(-z)).sum(1)

    @torch.no_grad()
    def invert(self, z: Tensor, k: Tensor) -> Tensor:
        """Inverse flow: z (B, D) at levels k (B,) -> x (B, D)."""
        z = z * (-self.log_scale[k]).exp()
        a, b = z[:, : self.odd], z[:, self.odd :]
        for i, coupling in reversed(list(enumerate(self.couplings))):
            a, b = (a, b - self._shift(coupling, a, k)) if i % 2 == 0 else (a - self._shift(coupling, b, k), b)
        x = torch.empty_like(z)
        x[:, 1::2], x[:, ::2] = a, b
        return x

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, 1::2], x[:, ::2]  # interleaved halves, because neighbouring pixels are correlated

    def _shift(self, coupling: nn.Module, seen: Tensor, k: Tensor) -> Tensor:
        shift: Tensor = coupling(torch.cat([seen, F.one_hot(k, self.levels).to(seen.dtype)], 1))
        return shift


class Whitening(NamedTuple):
    """ZCA whitening: a linear map to unit covariance that stays close to the pixels (Dinh et al. 2014, section 5.1)."""

    mean: Tensor  # (D,), for pixels in [-1, 1]
    whitening: Tensor  # (D, D), symmetric
    colouring: Tensor  # (D, D), its inverse

    @classmethod
    def of(cls, images: NDArray[np.uint8]) -> Self:
        """Fit the whitening of uint8 images (N, H, W, 1) with added noise."""
        x = to_tensor(images).flatten(1).double()
        values, vectors = torch.linalg.eigh(torch.cov(x.T))
        std = (values.clamp_min(0) + NOISE**2).sqrt()
        return cls(*(part.float() for part in (x.mean(0), (vectors / std) @ vectors.T, (vectors * std) @ vectors.T)))

    def whiten(self, x: Tensor) -> Tensor:
        """Pixels (N, D) -> coordinates (N, D)."""
        return (x - self.mean) @ self.whitening

    def pixels(self, white: Tensor) -> Tensor:
        """Coordinates (N, D) -> pixels (N, D), the inverse of `whiten`."""
        return white @ self.colouring + self.mean


class FlowEnergy(EnergyNet):
    """The energy E(x, k) = -log p(x) of a flow.

    It is normalised, but training does not use this. The evaluation does.
    """

    def __init__(self, flow: Nice) -> None:
        nn.Module.__init__(self)
        self.flow = flow

    def _read(self, x_t: Tensor, k: Tensor) -> tuple[Levels, Tensor]:
        energy = -self.flow.log_prob(x_t, k)
        return Levels(energy, energy[:, None], x_t), x_t[:, :0]


def fit_truth(
    out: Path, images: NDArray[np.uint8], whitening: Whitening, steps: int, seed: int, device: torch.device
) -> Nice:
    """Train the true flow by maximum likelihood on whitened images (N, H, W, 1) with noise.

    Its samples are the data of Figure 2, so the flow is exact by definition, however well it fits the images.

    Raises:
        KeyboardInterrupt: A signal stopped it. The same call resumes.
    """
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
    """Draw samples (count, D) of a flow at level 0."""
    uniform = np.random.default_rng(seed).uniform(1e-7, 1 - 1e-7, (count, flow.log_scale.shape[1]))
    z = torch.from_numpy(np.log(uniform / (1 - uniform)).astype(np.float32)).to(device)
    x: NDArray[np.float32] = flow.invert(z, torch.zeros(count, dtype=torch.long, device=device)).cpu().numpy()
    return x


def normals(seed: int, step: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Standard normal tensors of the given shapes, determined by `seed` and `step`, on the CPU."""
    rng = torch.Generator().manual_seed(random_word(seed, step + 1))
    return [torch.randn(shape, generator=rng) for shape in shapes]


@torch.no_grad()
def mean_log_prob(flow: Nice, x: NDArray[np.float32]) -> float:
    """Mean log density in nats of points (N, D) at level 0."""
    device = flow.log_scale.device
    blocks = torch.split(torch.from_numpy(x), 1_000)
    values = [flow.log_prob(b.to(device), torch.zeros(len(b), dtype=torch.long, device=device)) for b in blocks]
    return float(torch.cat(values).double().mean())
