"""The losses of DDAEBM (Geng et al., ICML 2024, arXiv 2403.01666), one value a sample.

Notation: transition k takes x_t to x_tp1. The generator draws x_t_gen from x_tp1 with latent z; the
energy network scores x_t; the encoder r(z | x_t, x_tp1) bounds the generator's entropy and drives the
reconstruction. The trainer reduces.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ddaebm.model.nets.diffusion import Diffusion

GradientPenalty = str  # "r1" | "conditional"


def contrast(energy_real: Tensor, energy_gen: Tensor, kind: str) -> Tensor:
    """What the energy network lowers, (B,): real energies against those of generated x_t, pair by pair.

    "difference" is the paper's E(x_t) - E(x_t_gen). "relativistic" is its softplus, which stops pushing a pair apart
    once it is (Jolicoeur-Martineau 2019, *The relativistic discriminator*, and R3GAN, Huang et al. 2024).
    "non-saturating" is a classifier's cross-entropy, -E being its logit (Goodfellow et al. 2014; DDGAN).
    """
    if kind == "non-saturating":
        return F.softplus(energy_real) + F.softplus(-energy_gen)
    difference = energy_real - energy_gen
    return F.softplus(difference) if kind == "relativistic" else difference


def generator_contrast(energy_real: Tensor, energy_gen: Tensor, kind: str) -> Tensor:
    """What the generator lowers against that `contrast`, (B,): the energy itself for "difference"."""
    if kind == "relativistic":
        return F.softplus(energy_gen - energy_real)
    return F.softplus(energy_gen) if kind == "non-saturating" else energy_gen


def gradient_penalty(
    energy: Tensor, diffusion: Diffusion, x_t: Tensor, x_tp1: Tensor, k: Tensor, kind: GradientPenalty
) -> Tensor:
    """Squared norm of a gradient at x_t, (B,).

    "conditional" is the paper's: the gradient of the conditional energy E(x_t) - log q(x_tp1 | x_t).
    "r1" is ‖∇E‖². Given a real x_t the score of q(x_tp1 | x_t) has mean zero, so in expectation the two
    differ by a constant, and "r1" is the one without that score's noise.

    Args:
        energy: E(x_t, k), (B,), computed from this x_t, which requires a gradient.

    Raises:
        ValueError: `kind` is neither.
    """
    if kind == "r1":
        potential = energy
    elif kind == "conditional":
        potential = energy - diffusion.log_q(x_tp1, x_t, k)
    else:
        raise ValueError(f"gradient penalty must be 'r1' or 'conditional', not {kind!r}")
    (gradient,) = torch.autograd.grad(potential.sum(), x_t, create_graph=True)
    return gradient.square().flatten(1).sum(1)


def denoising(x0_guess: Tensor, x_clean: Tensor) -> Tensor:
    """½‖x0_guess - x_clean‖² summed over pixels, (B,): the energy network's other task, in the energy's own unit.

    A network that must see through the noise of x_t has features of what is there (SIDDM: Xu et al. 2023,
    *Semi-Implicit Denoising Diffusion Models*, whose discriminator has such a task).
    """
    return 0.5 * (x0_guess - x_clean).square().flatten(1).sum(1)


def reverse_kl(energy: Tensor, log_q: Tensor, log_r: Tensor, entropy_weight: float) -> Tensor:
    """KL(p_phi ‖ p_theta) up to a constant: E(x_t_gen) - log q(x_tp1 | x_t_gen) - lambda·log r(z | x_t_gen, x_tp1).

    lambda = 1 is the divergence itself; the paper's code uses 0.1, whose fixed point has the energy of
    a flattened density (scaled by lambda).
    """
    return energy - log_q - entropy_weight * log_r


def forward_kl(x_t: Tensor, reconstruction: Tensor, mean: Tensor, log_var: Tensor, var: Tensor | float = 0.5) -> Tensor:
    """The ELBO of KL(q ‖ p_phi) up to a constant: summed squared error / (2·var) + KL(r(z | x_t, x_tp1) ‖ N(0, I)).

    Args:
        var: variance of the Gaussian likelihood, (B,) or one number; the default is the paper's squared error.
    """
    error = (x_t - reconstruction).square().flatten(1).sum(1)
    return error / (2 * var) + kl_to_standard_normal(mean, log_var)


def value_penalty(energy_real: Tensor, energy_gen: Tensor, level: Tensor) -> Tensor:
    """Half the squared distances of both energies from `level`, the mean real energy of the same k; each (B,).

    Holds the energy where the generator lags behind: without it the energy of a region with too many
    samples climbs without bound, since an adversary answers late. It biases a density by a share that
    does not depend on how narrow its modes are, as a gradient penalty's does (energies squared: Du and
    Mordatch 2019, *Implicit Generation and Modeling with Energy-Based Models*, section 3.3).
    """
    return 0.5 * ((energy_real - level).square() + (energy_gen - level).square())


def kl_to_standard_normal(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, exp(log_var)) ‖ N(0, I)), (B,), nats."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)


def gaussian_log_prob(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log N(z; mean, exp(log_var)), (B,), nats."""
    return -0.5 * ((z - mean).square() * (-log_var).exp() + log_var + math.log(2 * math.pi)).sum(1)
