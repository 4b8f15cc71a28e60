"""Quality measures for samples and densities."""

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
    """Compare samples (N, D) with a mixture of isotropic Gaussians of standard deviation `std` at `centres` (M, D).

    Each sample is assigned to its nearest centre, and is counted if it lies within 4 standard deviations of it.

    Returns:
        modes: Number of centres with a counted sample.
        within_4_sigma: Share of counted samples; 0.9997 for exact samples of a mixture in two dimensions.
        std_ratio: Standard deviation of the counted samples around their centres, divided by `std`; 0 without any.
        largest_mode, smallest_mode: Largest and smallest number of counted samples of a centre, divided by the mean.
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
    """KL(true ‖ density) in nats, from unnormalised log densities at the points of a regular grid."""
    p, q = log_softmax(log_true.ravel()), log_softmax(log_density.ravel())
    return float((np.exp(p) * (p - q)).sum())


class _Given(nn.Module):
    """An identity network. torchmetrics expects a feature extractor, but the features are already computed."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Fréchet distance ‖mu_r - mu_g‖² + tr(C_r + C_g - 2·sqrt(C_r·C_g)) of features (N, F) and (M, F).

    Its bias decreases with N and M, so compare results at equal sizes only (Heusel et al. 2017, *GANs Trained by a Two
    Time-Scale Update Rule*).
    """
    metric = FrechetInceptionDistance(_Given(real.shape[1]))
    _feed(metric, real, generated)
    return float(metric.compute())


def kernel_distance(real: Tensor, generated: Tensor, subsets: int = 100, subset_size: int = 1_000) -> float:
    """Kernel distance (KID): unbiased squared MMD of features (N, F) and (M, F) with the kernel (f·g/F + 1)³.

    It is the mean over random subsets, drawn with a fixed seed. For equal distributions its expectation is 0, so that
    it can be negative (Binkowski et al. 2018, *Demystifying MMD GANs*).
    """
    size = min(subset_size, len(real), len(generated))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # torchmetrics warns that it stores all features, which is harmless here
        torch.manual_seed(0)
        metric = KernelInceptionDistance(_Given(real.shape[1]), subsets=subsets, subset_size=size)
        _feed(metric, real, generated)
        mean, _ = metric.compute()
    return float(mean)


def _feed(metric: Metric, real: Tensor, generated: Tensor) -> None:
    metric.update(real, real=True)
    metric.update(generated, real=False)


def precision_recall(real: Tensor, generated: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Precision and recall of generated features (M, F) for real features (N, F).

    Precision is the share of generated points inside the manifold of the real points, recall the reverse. The manifold
    of a set is the union of balls around its points. The radius of a ball is the distance to the `neighbours`-th
    nearest other point of the set (Kynkäänniemi et al. 2019, *Improved Precision and Recall Metric for Assessing
    Generative Models*).
    """
    return _share_among(generated, real, neighbours), _share_among(real, generated, neighbours)


def _share_among(points: Tensor, others: Tensor, neighbours: int) -> float:
    # + 1, because the nearest point of `others` is the point itself. Blocks limit the memory of the distances.
    radii = torch.cat(
        [torch.cdist(block, others).kthvalue(neighbours + 1).values for block in torch.split(others, 1_000)]
    )
    inside = [(torch.cdist(block, others) <= radii).any(1) for block in torch.split(points, 1_000)]
    return torch.cat(inside).double().mean().item()
