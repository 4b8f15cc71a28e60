"""One train step of the three networks, for images and points alike, and all that it changes.

Everything random in a step is drawn from a generator seeded by (seed, step), so that a step is a function of
the state, the batch and the step's number.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from ddaebm.model.nets.diffusion import Diffusion
from ddaebm.model.nets.networks import EnergyNet, Generator, Networks
from ddaebm.model.noise import random_word
from ddaebm.training.config import TrainConfig
from ddaebm.training.losses import (
    contrast,
    denoising,
    forward_kl,
    gaussian_log_prob,
    generator_contrast,
    gradient_penalty,
    reverse_kl,
    value_penalty,
)


class Draws(NamedTuple):
    """All randomness of one train step."""

    k: Tensor  # (B,)
    eps_t: Tensor  # (B, *data_shape), as are the next two
    eps_tp1: Tensor
    eps_gen: Tensor
    z: Tensor  # (B, latent_dim), prior
    eps_z: Tensor  # (B, latent_dim), the encoder's
    side: Tensor  # (B,), in [0, 1): below ½ an image is mirrored, where they are


def draw(config: TrainConfig, step: int, batch: int, device: torch.device) -> Draws:
    rng = torch.Generator(device).manual_seed(random_word(config.seed, step + 1))
    shape, latent = (batch, *config.network.data_shape), (batch, config.network.latent_dim)
    k = torch.randint(config.network.num_steps, (batch,), generator=rng, device=device)
    eps_t, eps_tp1, eps_gen, z, eps_z = (
        torch.randn(s, generator=rng, device=device) for s in (shape, shape, shape, latent, latent)
    )
    return Draws(k, eps_t, eps_tp1, eps_gen, z, eps_z, torch.rand(batch, generator=rng, device=device))


@dataclass
class TrainState:
    """All that changes while training."""

    networks: Networks
    generator_ema: Generator
    energy_net_ema: EnergyNet
    optimizer_generator: torch.optim.Optimizer  # and encoder
    optimizer_energy: torch.optim.Optimizer
    step: int = 0


def make_state(config: TrainConfig, device: torch.device | str = "cpu") -> TrainState:
    """Fresh networks, initialised from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        networks = Networks(config.network)
    networks.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions in 0.6 of the time
    generator_params = [*networks.generator.parameters(), *networks.encoder.parameters()]

    def adam(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=0.0, betas=config.adam_betas, fused=True)  # lr is set each step

    return TrainState(
        networks=networks,
        generator_ema=deepcopy(networks.generator).requires_grad_(False),
        energy_net_ema=deepcopy(networks.energy_net).requires_grad_(False),
        optimizer_generator=adam(generator_params),
        optimizer_energy=adam(list(networks.energy_net.parameters())),
    )


def cosine(step: int, steps: int, start: float, final: float) -> float:
    """Learning rate of `step`: from `start` at 0 to `final` at `steps`."""
    return final + (start - final) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


def ema_update(average: nn.Module, current: nn.Module, decay: float) -> None:
    """average <- decay·average + (1 - decay)·current."""
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(current.parameters()), 1 - decay)


def train_step(
    config: TrainConfig,
    diffusion: Diffusion,
    state: TrainState,
    x_clean: Tensor,
    draws: Draws,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """One update of all three networks, each from the others as they were.

    Returns:
        Means over the batch of each loss term, detached.
    """
    generator, encoder = (partial(_forward, config, net) for net in (state.networks.generator, state.networks.encoder))
    k = draws.k
    if config.flip:
        x_clean = torch.where((draws.side < 0.5)[:, None, None, None], x_clean.flip(3), x_clean)
    x_t, x_tp1 = diffusion.forward_pair(x_clean, k, draws.eps_t, draws.eps_tp1)

    # Both of the generator's draws in one pass: from the prior, and from the encoder's latent.
    mean, log_var = encoder(x_t, x_tp1, k)
    z_encoded = mean + (0.5 * log_var).exp() * draws.eps_z
    x0_hat, x0_rec = generator(torch.cat([x_tp1, x_tp1]), torch.cat([draws.z, z_encoded]), torch.cat([k, k])).chunk(2)
    x_t_gen = diffusion.posterior_sample(x0_hat, x_tp1, k, draws.eps_gen, config.noise_at_zero)
    x_t_rec = diffusion.posterior_mean(x0_rec if config.reconstruct_from == "encoder" else x0_hat, x_tp1, k)

    # Energy. Its slope at x_gen is wanted too: by itself, or for nothing from the energy's backward pass.
    x_gen = x_t_gen.detach().requires_grad_()
    energy_loss, energy_real, energy_gen, penalty = _energy_loss(
        config, diffusion, state, x_clean, x_t, x_tp1, x_gen, k, accelerator
    )
    if config.value_penalty or config.penalize_generated or config.contrast != "difference":
        (slope,) = torch.autograd.grad(energy_gen.sum(), x_gen, retain_graph=True)
        accelerator.backward(energy_loss.mean())
    else:
        accelerator.backward(energy_loss.mean())
        assert x_gen.grad is not None
        slope = -len(k) * x_gen.grad

    # Generator and encoder: Jeffrey's divergence. The energy is taken to first order around x_t_gen:
    # its value and gradient are at hand, so that the network need not run again.
    energy_first_order = energy_gen.detach() + (slope * (x_t_gen - x_gen.detach())).flatten(1).sum(1)
    raised = generator_contrast(energy_real.detach(), energy_first_order, config.contrast)
    # An energy that sees x_tp1 is the conditional one as it is.
    log_q = torch.zeros_like(raised) if config.network.energy_sees_next else diffusion.log_q(x_tp1, x_t_gen, k)
    log_r = gaussian_log_prob(draws.z, *encoder(x_t_gen, x_tp1, k))
    reverse = reverse_kl(raised, log_q, log_r, config.entropy_weight)
    var = diffusion.posterior_std[k].square().clamp_min(config.likelihood_floor) if config.likelihood_floor else 0.5
    forward = forward_kl(x_t, x_t_rec, mean, log_var, var)
    accelerator.backward((reverse + config.forward_weight * forward).mean())

    if state.step < config.encoder_steps:
        state.optimizer_energy.zero_grad(set_to_none=True)
        state.networks.generator.zero_grad(set_to_none=True)
    energy_norm = _update(accelerator, state.optimizer_energy, config, state.step, config.lr_energy)
    generator_norm = _update(accelerator, state.optimizer_generator, config, state.step, config.lr_generator)

    state.step += 1
    decay = config.ema_decay
    if not config.start:  # warm-up: forget the random start
        decay = min(decay, (1 + state.step) / (10 + state.step))
    ema_update(state.generator_ema, state.networks.generator, decay)
    ema_update(state.energy_net_ema, state.networks.energy_net, decay)

    terms = {
        "energy_real": energy_real, "energy_gen": energy_gen, "penalty": penalty, "reverse_kl": reverse,
        "forward_kl": forward, "log_r": log_r, "grad_norm_energy": energy_norm, "grad_norm_generator": generator_norm,
    }  # fmt: skip
    return {name: values.detach().mean() for name, values in terms.items() if values is not None}


def _energy_loss(
    config: TrainConfig,
    diffusion: Diffusion,
    state: TrainState,
    x_clean: Tensor,
    x_t: Tensor,
    x_tp1: Tensor,
    x_gen: Tensor,
    k: Tensor,
    accelerator: Accelerator,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Low on real pairs, high on generated ones, smooth at the real ones: (loss, E(x_t), E(x_gen), penalty), each (B,).

    The penalty is None in the steps that a lazy one leaves out.
    """
    energies = state.networks.energy_net.energy_and_guess
    given = (x_tp1,) if config.network.energy_sees_next else ()
    penalty = None
    if state.step % config.penalty_every == 0:  # in float32, whose second derivatives can be trusted
        x_t = x_t.detach().requires_grad_()
        energy_real, x0_guess = energies(x_t, k, *given)
        penalty = gradient_penalty(energy_real, diffusion, x_t, x_tp1, k, config.gradient_penalty)
        if config.penalize_generated:
            energy_gen, _ = energies(x_gen, k, *given)
            penalty = penalty + gradient_penalty(energy_gen, diffusion, x_gen, x_tp1, k, config.gradient_penalty)
        else:
            energy_gen, _ = _forward(config, energies, x_gen, k, *given)
    else:
        twice = (torch.cat([part, part]) for part in (k, *given))
        both, x0_guess = _forward(config, energies, torch.cat([x_t, x_gen]), *twice)
        energy_real, energy_gen = both.chunk(2)
    loss = contrast(energy_real, energy_gen, config.contrast)
    if penalty is not None:
        loss = loss + 0.5 * config.gamma * config.penalty_every * penalty
    if config.denoise_weight:
        loss = loss + config.denoise_weight * denoising(x0_guess[: len(x_clean)], x_clean)
    if config.value_penalty:
        level = _means_by_step(energy_real.detach(), k, diffusion, accelerator)[k]
        loss = loss + config.value_penalty * value_penalty(energy_real, energy_gen, level)
    return loss, energy_real, energy_gen, penalty


def _forward(config: TrainConfig, network: Callable[..., Any], *inputs: Tensor) -> Any:
    """What `network` makes of `inputs`, in float32 or wider, by `config.precision`."""
    if config.precision == "fp32":
        return network(*inputs)
    with torch.autocast(inputs[0].device.type, torch.bfloat16):
        outputs = network(*inputs)
    return outputs.float() if isinstance(outputs, Tensor) else tuple(output.float() for output in outputs)


def _means_by_step(values: Tensor, k: Tensor, diffusion: Diffusion, accelerator: Accelerator) -> Tensor:
    """Mean of `values` (B,) over the samples of each k in all processes, (T,); 0 where there are none."""
    of_step = F.one_hot(k, diffusion.num_steps).to(values.dtype)  # (B, T)
    sums, counts = accelerator.reduce(torch.stack([values @ of_step, of_step.sum(0)]), "sum")
    means: Tensor = sums / counts.clamp_min(1)
    return means


def _update(
    accelerator: Accelerator, optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, lr: float
) -> Tensor:
    """One optimiser step on the gradients at hand, which are then dropped; the norm of them."""
    (group,) = optimizer.param_groups
    moving = [parameter for parameter in group["params"] if parameter.grad is not None]
    if accelerator.num_processes > 1:
        for parameter in moving:
            parameter.grad = accelerator.reduce(parameter.grad, "mean")
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in moving])
    group["lr"] = cosine(step, config.steps, lr, config.lr_final)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
