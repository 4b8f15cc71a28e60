"""Loss terms of DDAEBM, one value per sample; `training.objective` combines them.

Source: Geng et al., *Improving Adversarial Energy-Based Model via Diffusion Process*, ICML 2024, arXiv 2403.01666.

Notation: transition k takes x_t to x_tp1. The generator draws x_t_gen from x_tp1 and the latent z. The energy network
scores x_t. The encoder r(z | x_t, x_tp1) bounds the generator's entropy and supplies latents for the reconstruction.
"""

import math

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from ddaebm.model.nets.diffusion import Diffusion


def gradient_penalty(energy: Tensor, diffusion: Diffusion, x_t: Tensor, x_tp1: Tensor, k: Tensor, kind: str) -> Tensor:
    """Squared norm of the energy's gradient at x_t, (B,).

    "conditional" is the paper's penalty, on the conditional energy: ‖∇[E(x_t) - log q(x_tp1 | x_t)]‖². "r1" is ‖∇E‖².
    For real pairs the score of q(x_tp1 | x_t) has mean zero given x_t. So both have the same expectation up to a
    constant, and "r1" has less variance.

    Args:
        energy: E(x_t, k), (B,), computed from this `x_t`.
        x_t: (B, *data_shape), with requires_grad.
        x_tp1: (B, *data_shape).
        k: (B,).
        kind: "r1" or "conditional".

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
    """½‖x0_guess - x_clean‖² summed over pixels, (B,): the energy network's auxiliary task.

    The task makes the network's features see through the noise of x_t. Source: SIDDM (Xu et al. 2023, *Semi-Implicit
    Denoising Diffusion Models*), whose discriminator has such a task.
    """
    return 0.5 * (x0_guess - x_clean).square().flatten(1).sum(1)


def reverse_kl(energy: Tensor, log_q: Tensor, log_r: Tensor, entropy_weight: float) -> Tensor:
    """KL(p_phi ‖ p_theta) up to a constant: E(x_t_gen) - log q(x_tp1 | x_t_gen) - lambda·log r(z | x_t_gen, x_tp1).

    Args:
        energy: E(x_t_gen), (B,).
        log_q: log q(x_tp1 | x_t_gen), (B,), nats.
        log_r: log r(z | x_t_gen, x_tp1), (B,), nats.
        entropy_weight: lambda. With 1 this is the divergence. The paper's code uses 0.1, which scales the energy at the
            optimum by 0.1, so that exp(-E) is a flattened density.
    """
    return energy - log_q - entropy_weight * log_r


def forward_kl(x_t: Tensor, reconstruction: Tensor, mean: Tensor, log_var: Tensor, var: Tensor | float = 0.5) -> Tensor:
    """ELBO of KL(q ‖ p_phi) up to a constant, (B,), nats.

    It is ‖x_t - reconstruction‖² / (2·var) + KL(r(z | x_t, x_tp1) ‖ N(0, I)).

    Args:
        x_t: (B, *data_shape), as is `reconstruction`.
        mean: (B, latent_dim), of r(z | x_t, x_tp1).
        log_var: (B, latent_dim).
        var: Variance of the Gaussian likelihood, (B,) or one number. The default is the paper's squared error.
    """
    error = (x_t - reconstruction).square().flatten(1).sum(1)
    return error / (2 * var) + kl_to_standard_normal(mean, log_var)


def value_penalty(energy_real: Tensor, energy_gen: Tensor, level: Tensor) -> Tensor:
    """Half the squared distances of both energies from `level`, the mean real energy of the same k; each (B,).

    It bounds the energy while the generator lags behind. Without it, the energy of a region with too many samples grows
    without limit before the generator reacts. A gradient penalty does this too, but it biases narrow modes more than
    wide ones. Source of squared energies: Du and Mordatch 2019, *Implicit Generation and Modeling with Energy-Based
    Models*, section 3.3.
    """
    return 0.5 * ((energy_real - level).square() + (energy_gen - level).square())


def means_by_step(values: Tensor, k: Tensor, num_steps: int, accelerator: Accelerator) -> Tensor:
    """Mean of `values` (B,) for each transition k over all processes, (num_steps,); 0 for a k without samples."""
    of_step = F.one_hot(k, num_steps).to(values.dtype)  # (B, T)
    sums, counts = accelerator.reduce(torch.stack([values @ of_step, of_step.sum(0)]), "sum")
    means: Tensor = sums / counts.clamp_min(1)
    return means


def kl_to_standard_normal(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, exp(log_var)) ‖ N(0, I)) for (B, D) parameters, (B,), nats."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)


def gaussian_log_prob(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log N(z; mean, exp(log_var)) for (B, D) arguments, (B,), nats."""
    return -0.5 * ((z - mean).square() * (-log_var).exp() + log_var + math.log(2 * math.pi)).sum(1)
