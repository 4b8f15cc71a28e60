"""One train step of the three networks, and the state that it changes.

All randomness of a step comes from a generator seeded by (seed, step). So a step is a function of the state, the batch
and the step number.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ddaebm.model.config import ModelConfig
from ddaebm.model.nets.diffusion import Diffusion
from ddaebm.model.nets.networks import EnergyNet, Generator, Networks
from ddaebm.model.noise import random_word
from ddaebm.training.config import TrainConfig
from ddaebm.training.objective import DDAEBMLoss, Draws, EnergyTerms, Pair


def draw(config: TrainConfig, step: int, batch: int, device: torch.device) -> Draws:
    """Draw all random numbers of train step `step` for `batch` samples."""
    rng = torch.Generator(device).manual_seed(random_word(config.seed, step + 1))
    shape, latent = (batch, *config.network.data_shape), (batch, config.network.latent_dim)
    # A seed stands for these draws in this order: do not reorder them.
    k = torch.randint(config.network.num_steps, (batch,), generator=rng, device=device)
    eps_t, eps_tp1, eps_gen, z, eps_z = (
        torch.randn(s, generator=rng, device=device) for s in (shape, shape, shape, latent, latent)
    )
    return Draws(k, eps_t, eps_tp1, eps_gen, z, eps_z, torch.rand(batch, generator=rng, device=device))


@dataclass
class TrainState:
    """Networks, their exponential moving averages (EMA), optimisers and the number of steps done."""

    networks: Networks
    generator_ema: Generator
    energy_net_ema: EnergyNet
    optimizer_generator: torch.optim.Optimizer  # also for the encoder
    optimizer_energy: torch.optim.Optimizer
    step: int = 0

    def train_encoder_only(self, only: bool) -> None:
        """Freeze generator and energy network if `only`, else unfreeze them."""
        self.networks.generator.requires_grad_(not only)
        self.networks.energy_net.requires_grad_(not only)

    def update_ema(self, decay: float, warm_up: bool) -> None:
        """Move both averages towards the current weights.

        Args:
            warm_up: Use a smaller decay in the first steps, so that the averages forget the random initialisation.
        """
        if warm_up:
            decay = min(decay, (1 + self.step) / (10 + self.step))
        ema_update(self.generator_ema, self.networks.generator, decay)
        ema_update(self.energy_net_ema, self.networks.energy_net, decay)


def make_state(
    config: TrainConfig,
    device: torch.device | str = "cpu",
    make_networks: Callable[[ModelConfig], Networks] = Networks,
) -> TrainState:
    """Make the state at step 0. The weights depend on `config.seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        networks = make_networks(config.network)
    # With channels_last, convolutions take 0.6 of the time.
    networks.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    generator_params = [*networks.generator.parameters(), *networks.encoder.parameters()]

    def adam(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=0.0, betas=config.adam_betas, fused=True)  # `_update` sets lr in each step

    return TrainState(
        networks=networks,
        generator_ema=deepcopy(networks.generator).requires_grad_(False),
        energy_net_ema=deepcopy(networks.energy_net).requires_grad_(False),
        optimizer_generator=adam(generator_params),
        optimizer_energy=adam(list(networks.energy_net.parameters())),
    )


def train_step(
    config: TrainConfig,
    diffusion: Diffusion,
    state: TrainState,
    x_clean: Tensor,
    draws: Draws,
    accelerator: Accelerator,
    make_loss: Callable[[TrainConfig, Diffusion, Accelerator], DDAEBMLoss] = DDAEBMLoss,
) -> dict[str, Tensor]:
    """Update all three networks once. Each loss uses the other networks' weights from before the step.

    Args:
        x_clean: Training data, (B, *data_shape); images in [-1, 1].
        draws: The random numbers of this step for the same B samples.
        make_loss: The training method.

    Returns:
        The batch mean of each loss term, and the norm of both gradients; scalars, detached.
    """
    loss, networks = make_loss(config, diffusion, accelerator), state.networks
    x_t, x_tp1 = diffusion.forward_pair(x_clean, draws.k, draws.eps_t, draws.eps_tp1)
    pair = Pair(x_clean, x_t, x_tp1, draws.k)
    generated = loss.generate(networks, pair, draws)

    # Energy network: lower E at real x_t, raise it at generated x_t.
    x_gen = generated.x_t.detach().requires_grad_()
    energy = loss.energy_loss(networks, pair, x_gen, penalize=state.step % config.penalty_every == 0)
    slope = _backward(energy, x_gen, accelerator, loss.slope_is_free)

    # Generator and encoder. E's value and gradient at x_t_gen are known from above. Its first-order expansion there
    # has both, so the energy network need not run again.
    energy_gen = energy.generated.detach() + (slope * (generated.x_t - x_gen.detach())).flatten(1).sum(1)
    generator = loss.generator_loss(networks, pair, generated, energy_gen, draws)
    accelerator.backward(generator.loss.mean())

    energy_norm = _update(accelerator, state.optimizer_energy, config, state.step, config.lr_energy)
    generator_norm = _update(accelerator, state.optimizer_generator, config, state.step, config.lr_generator)
    state.step += 1
    state.update_ema(config.ema_decay, warm_up=not config.start)

    penalty = {} if energy.penalty is None else {"penalty": energy.penalty}
    norms = {"grad_norm_energy": energy_norm, "grad_norm_generator": generator_norm}
    terms = {"energy_real": energy.real, "energy_gen": energy.generated, **penalty, **generator.parts, **norms}
    return {name: values.detach().mean() for name, values in terms.items()}


def _backward(energy: EnergyTerms, x_gen: Tensor, accelerator: Accelerator, slope_is_free: bool) -> Tensor:
    """Backpropagate the energy loss and return ∇E(x_gen), (B, *data_shape)."""
    if slope_is_free:
        accelerator.backward(energy.loss.mean())
        assert x_gen.grad is not None
        return -len(x_gen) * x_gen.grad
    (slope,) = torch.autograd.grad(energy.generated.sum(), x_gen, retain_graph=True)
    accelerator.backward(energy.loss.mean())
    return slope


def _update(
    accelerator: Accelerator, optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, lr: float
) -> Tensor:
    """Average the gradients over processes, take one optimiser step, clear them and return their norm."""
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


def cosine(step: int, steps: int, start: float, final: float) -> float:
    """Learning rate of `step`: a cosine from `start` at step 0 to `final` at `steps`."""
    return final + (start - final) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


def ema_update(average: nn.Module, current: nn.Module, decay: float) -> None:
    """In place: average <- decay·average + (1 - decay)·current."""
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(current.parameters()), 1 - decay)
