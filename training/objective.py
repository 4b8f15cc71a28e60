"""The DDAEBM objective: what each network minimises in a train step.

Source: Geng et al., *Improving Adversarial Energy-Based Model via Diffusion Process*, ICML 2024, arXiv 2403.01666.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from ddaebm.model.nets.diffusion import Diffusion
from ddaebm.model.nets.networks import Networks
from ddaebm.training.config import TrainConfig
from ddaebm.training.losses import (
    denoising,
    forward_kl,
    gaussian_log_prob,
    gradient_penalty,
    means_by_step,
    reverse_kl,
    value_penalty,
)


class Draws(NamedTuple):
    """All random numbers of one train step, for B samples."""

    k: Tensor  # (B,), transitions in 0..T-1
    eps_t: Tensor  # (B, *data_shape), as are the next two
    eps_tp1: Tensor
    eps_gen: Tensor
    z: Tensor  # (B, latent_dim), latents from the prior
    eps_z: Tensor  # (B, latent_dim), noise of the encoder's latents
    side: Tensor  # (B,), uniform in [0, 1); with `flip`, images below ½ are mirrored


class Pair(NamedTuple):
    """Real samples of the forward process: transition k takes x_t to x_tp1."""

    x_clean: Tensor  # (B, *data_shape), as are the next two
    x_t: Tensor
    x_tp1: Tensor
    k: Tensor  # (B,)


class Generated(NamedTuple):
    """Outputs of generator and encoder for a `Pair`."""

    x_t: Tensor  # (B, *data_shape), draw of p_phi(x_t | x_tp1) with a latent from the prior
    x0_hat: Tensor  # (B, *data_shape), the generator's output for that draw
    x_t_rec: Tensor  # (B, *data_shape), reconstruction of the real x_t from the encoder's latent
    mean: Tensor  # (B, latent_dim), of r(z | x_t, x_tp1) for the real pair
    log_var: Tensor  # (B, latent_dim)


class EnergyTerms(NamedTuple):
    """Loss of the energy network and its parts, each (B,)."""

    loss: Tensor
    real: Tensor  # E(x_t, k)
    generated: Tensor  # E(x_t_gen, k)
    penalty: Tensor | None  # None in steps without a gradient penalty


class GeneratorTerms(NamedTuple):
    """Loss of generator and encoder, (B,), and the parts that are logged, each (B,)."""

    loss: Tensor
    parts: dict[str, Tensor]


class DDAEBMLoss:
    """The adversarial losses of DDAEBM. `training.step.train_step` calls the three methods in order.

    A subclass changes the method (see `training.reproduce.variants`).
    """

    def __init__(self, config: TrainConfig, diffusion: Diffusion, accelerator: Accelerator) -> None:
        self.config, self.diffusion, self.accelerator = config, diffusion, accelerator

    @property
    def slope_is_free(self) -> bool:
        """True if generated samples enter `energy_loss` only as -E(x_gen).

        Then the gradient of the mean loss at x_gen is -∇E(x_gen)/B, and needs no extra backward pass.
        """
        return not self.config.value_penalty

    def generate(self, networks: Networks, pair: Pair, draws: Draws) -> Generated:
        """Draw x_t_gen from x_tp1 and reconstruct the real x_t."""
        _, x_t, x_tp1, k = pair
        mean, log_var = self.run(networks.encoder, x_t, x_tp1, k)
        z_encoded = mean + (0.5 * log_var).exp() * draws.eps_z
        # One pass for both latents is faster than two.
        both = self.run(
            networks.generator, torch.cat([x_tp1, x_tp1]), torch.cat([draws.z, z_encoded]), torch.cat([k, k])
        )
        x0_hat, x0_rec = both.chunk(2)  # (2B, ...) -> 2 of (B, ...)
        x_t_gen = self.diffusion.posterior_sample(x0_hat, x_tp1, k, draws.eps_gen, self.config.noise_at_zero)
        return Generated(x_t_gen, x0_hat, self.diffusion.posterior_mean(x0_rec, x_tp1, k), mean, log_var)

    def energy_loss(self, networks: Networks, pair: Pair, x_gen: Tensor, penalize: bool) -> EnergyTerms:
        """E(x_t) - E(x_gen) + gamma/2·penalty, plus the denoising and value terms that `config` asks for.

        Args:
            x_gen: Generated x_t, (B, *data_shape), detached from the generator, with requires_grad.
            penalize: Whether this step has the gradient penalty, on the real x_t.
        """
        config, (x_clean, x_t, x_tp1, k) = self.config, pair
        energies = networks.energy_net.energy_and_guess
        penalty = None
        if penalize:
            # Second derivatives need float32: this pass is outside autocast.
            x_t = x_t.detach().requires_grad_()
            real, x0_guess = energies(x_t, k)
            penalty = gradient_penalty(real, self.diffusion, x_t, x_tp1, k, config.gradient_penalty)
            generated, _ = self.run(energies, x_gen, k)
        else:
            both, x0_guess = self.run(energies, torch.cat([x_t, x_gen]), torch.cat([k, k]))
            real, generated = both.chunk(2)
        loss = real - generated
        if penalty is not None:
            loss = loss + 0.5 * config.gamma * config.penalty_every * penalty
        if config.denoise_weight:
            loss = loss + config.denoise_weight * denoising(x0_guess[: len(x_clean)], x_clean)
        if config.value_penalty:
            level = means_by_step(real.detach(), k, self.diffusion.num_steps, self.accelerator)[k]
            loss = loss + config.value_penalty * value_penalty(real, generated, level)
        return EnergyTerms(loss, real, generated, penalty)

    def generator_loss(
        self, networks: Networks, pair: Pair, generated: Generated, energy_gen: Tensor, draws: Draws
    ) -> GeneratorTerms:
        """KL(p_phi ‖ p_theta) + forward_weight·KL(q ‖ p_phi); the Jeffrey divergence with forward_weight 1.

        Args:
            energy_gen: E(x_t_gen, k), (B,), differentiable in `generated.x_t`.
        """
        config, (_, x_t, x_tp1, k) = self.config, pair
        log_q = self.diffusion.log_q(x_tp1, generated.x_t, k)
        log_r = gaussian_log_prob(draws.z, *self.run(networks.encoder, generated.x_t, x_tp1, k))
        reverse = reverse_kl(energy_gen, log_q, log_r, config.entropy_weight)
        var: Tensor | float = 0.5
        if config.likelihood_floor:
            var = self.diffusion.posterior_std[k].square().clamp_min(config.likelihood_floor)
        forward = forward_kl(x_t, generated.x_t_rec, generated.mean, generated.log_var, var)
        parts = {"reverse_kl": reverse, "forward_kl": forward, "log_r": log_r}
        return GeneratorTerms(reverse + config.forward_weight * forward, parts)

    def run(self, network: Callable[..., Any], *inputs: Tensor) -> Any:
        """Call `network` in the precision of `config`; its outputs are float32 or wider."""
        if self.config.precision == "fp32":
            return network(*inputs)
        with torch.autocast(inputs[0].device.type, torch.bfloat16):
            outputs = network(*inputs)
        return outputs.float() if isinstance(outputs, Tensor) else tuple(output.float() for output in outputs)
