"""How good samples and densities are."""

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from scipy.special import log_softmax
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance


def mode_report(samples: NDArray[np.floating], centres: NDArray[np.floating], std: float) -> dict[str, float]:
    """How samples (N, D) sit in a mixture of round Gaussians of one `std` at `centres` (M, D).

    A sample belongs to its nearest centre and is counted within 4 standard deviations of it.

    Returns:
        modes: centres that have a counted sample.
        within_4_sigma: share of the samples that are counted; 0.9997 for the mixture itself in the plane.
        std_ratio: root mean square distance a coordinate from the centre, over `std`; 0 where none is counted.
        largest_mode, smallest_mode: most and fewest counted samples of a mode, over their mean.
    """
    distance, nearest = KDTree(centres).query(samples)
    near = distance <= 4 * std
    counts = np.bincount(nearest[near], minlength=len(centres))
    mean = max(counts.mean(), np.finfo(float).tiny)
    square = np.square(distance[near]).sum() / max(near.sum() * centres.shape[1], 1)
    return {
        "modes": int((counts > 0).sum()),
        "within_4_sigma": float(near.mean()),
        "std_ratio": float(np.sqrt(square) / std),
        "largest_mode": float(counts.max() / mean),
        "smallest_mode": float(counts.min() / mean),
    }


def grid_kl(log_true: NDArray[np.floating], log_density: NDArray[np.floating]) -> float:
    """KL(true ‖ density) in nats, of unnormalised log-densities at the points of one regular grid."""
    p, q = log_softmax(log_true.ravel()), log_softmax(log_density.ravel())
    return float((np.exp(p) * (p - q)).sum())


class _Given(nn.Module):
    """Features that were computed before, where torchmetrics wants a network that computes them."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """‖mu_r - mu_g‖² + tr(C_r + C_g - 2·sqrt(C_r·C_g)) of features (N, F) and (M, F) (Heusel et al. 2017, *GANs Trained
    by a Two Time-Scale Update Rule*). It falls with N and M by itself: compare at equal numbers.
    """
    metric = FrechetInceptionDistance(_Given(real.shape[1]))
    _feed(metric, real, generated)
    return float(metric.compute())


def kernel_distance(real: Tensor, generated: Tensor, subsets: int = 100, subset_size: int = 1_000) -> float:
    """Squared MMD under the kernel (f·g/F + 1)³ of features (N, F) and (M, F), without bias: 0 for one and the same
    law, and so now and then below it (Binkowski et al. 2018, *Demystifying MMD GANs*). A mean over fixed subsets.
    """
    size = min(subset_size, len(real), len(generated))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # that it keeps all features, which are here already
        torch.manual_seed(0)
        metric = KernelInceptionDistance(_Given(real.shape[1]), subsets=subsets, subset_size=size)
        _feed(metric, real, generated)
        mean, _ = metric.compute()
    return float(mean)


def _feed(metric: Metric, real: Tensor, generated: Tensor) -> None:
    metric.update(real, real=True)
    metric.update(generated, real=False)


def precision_recall(real: Tensor, generated: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Share of `generated` (M, F) among the real ones, and of `real` (N, F) among the generated: (precision, recall).

    A point is among others when for one of them it is no further than that one's `neighbours`-th nearest of its own
    kind (Kynkäänniemi et al. 2019, *Improved Precision and Recall Metric for Assessing Generative Models*).
    """
    return _share_among(generated, real, neighbours), _share_among(real, generated, neighbours)


def _share_among(points: Tensor, others: Tensor, neighbours: int) -> float:
    # Its own distance, 0, is the first. In blocks, since all distances at once would be gigabytes.
    radii = torch.cat(
        [torch.cdist(block, others).kthvalue(neighbours + 1).values for block in torch.split(others, 1_000)]
    )
    inside = [(torch.cdist(block, others) <= radii).any(1) for block in torch.split(points, 1_000)]
    return torch.cat(inside).double().mean().item()
