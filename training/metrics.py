"""How good samples and densities are."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree
from scipy.special import log_softmax


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
