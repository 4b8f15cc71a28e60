"""The baseline of Figure 2: WGAN-GP with a flow as its critic.

Source: Gulrajani et al. 2017, *Improved Training of Wasserstein GANs*.
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ddaebm.model.nets.networks import Generator
from ddaebm.model.noise import image_seeds
from ddaebm.model.sampling import draw_noise
from ddaebm.training.config import TrainConfig
from ddaebm.training.data import batch_at
from ddaebm.training.reproduce.figure import fit, seeded
from ddaebm.training.reproduce.flow import Nice, normals
from ddaebm.training.reproduce.gaussian import begin_as_gaussian

PENALTY, CRITIC_STEPS = 10.0, 5  # the values of Gulrajani et al.


def train_wgan_gp(
    out: Path, config: TrainConfig, train: NDArray[np.float32], device: torch.device
) -> tuple[Nice, Generator]:
    """Train a WGAN-GP on `train` (N, D). The critic is log p(x) of a flow; the generator makes a sample in one step.

    The generator is initialised like that of the energy model, and is updated after every `CRITIC_STEPS` updates of the
    critic. The number of steps, the batch size and the widths come from `config`.

    Raises:
        KeyboardInterrupt: A signal stopped it. The same call resumes.
    """
    dim, latent, seed = config.network.data_shape[0], config.network.latent_dim, config.seed
    one_step = dataclasses.replace(config.network, num_steps=1)
    critic = seeded(seed, lambda: Nice(dim, [float(train.std())]), device)
    generator = seeded(seed, lambda: Generator(one_step), torch.device("cpu"))
    begin_as_gaussian(one_step, generator)
    generator.to(device)
    nets = nn.ModuleDict({"critic": critic, "generator": generator})
    optimizers = [torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.0, 0.9)) for net in nets.values()]
    batch = config.batch_size
    k = torch.zeros(batch, dtype=torch.long, device=device)

    def step(i: int) -> None:
        real = torch.from_numpy(batch_at(train, i, batch, seed)).to(device)
        x_T, z, mix = (part.to(device) for part in normals(seed, i, (batch, dim), (batch, latent), (batch, 1)))
        made = generator(x_T, z, k)
        weight = torch.special.ndtr(mix)  # uniform in (0, 1)
        between = (weight * real + (1 - weight) * made.detach()).requires_grad_()
        (slope,) = torch.autograd.grad(critic.log_prob(between, k).sum(), between, create_graph=True)
        penalty = PENALTY * (slope.norm(dim=1) - 1).square()
        losses = (
            critic.log_prob(made.detach(), k) - critic.log_prob(real, k) + penalty, -critic.log_prob(made, k)
        )  # fmt: skip
        turns = 1 + (i % CRITIC_STEPS == CRITIC_STEPS - 1)  # 1: only the critic; 2: critic and generator
        for loss, net in zip(losses[:turns], nets.values(), strict=False):
            gradients = torch.autograd.grad(loss.mean(), list(net.parameters()), retain_graph=True)
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                parameter.grad = gradient
        for optimizer in optimizers[:turns]:
            optimizer.step()

    fit(out / "wgan-gp.pt", "WGAN-GP, steps", nets, optimizers, config.steps, step)
    return critic, generator


@torch.no_grad()
def wgan_samples(generator: Generator, config: TrainConfig, count: int, seed: int) -> NDArray[np.float32]:
    """Draw samples (count, D) of the generator of `train_wgan_gp`."""
    device = next(generator.parameters()).device
    noise = draw_noise(config.network, torch.from_numpy(image_seeds(seed, count)).to(device))
    k = torch.zeros(count, dtype=torch.long, device=device)
    x: NDArray[np.float32] = generator(noise.x_T, noise.z[:, 0], k).cpu().numpy()
    return x
