"""The forward process and its posterior on torch tensors. All noise is passed in as an argument."""

import math

import torch
from torch import Tensor

from ddaebm.model.schedule import Schedule


class Diffusion:
    """Forward process, posterior and transition density of a `Schedule`, for a batch of transition indices k (B,)."""

    def __init__(
        self, schedule: Schedule, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.num_steps = schedule.num_steps

        def tensor(values: object) -> Tensor:
            return torch.as_tensor(values, dtype=torch.float64).to(device, dtype)

        self.sqrt_alpha_bar = tensor(schedule.alpha_bar**0.5)
        self.sigma = tensor(schedule.sigma)
        self.beta_tp1 = tensor(schedule.beta[1:])
        self.c1 = tensor(schedule.c1)
        self.c2 = tensor(schedule.c2)
        self.posterior_std = tensor(schedule.posterior_log_var).mul(0.5).exp()

    def forward_pair(self, x_clean: Tensor, k: Tensor, eps_t: Tensor, eps_tp1: Tensor) -> tuple[Tensor, Tensor]:
        """Sample (x_t, x_tp1) of transition k from two standard normal draws, all shaped as `x_clean`."""
        x_t = _at(self.sqrt_alpha_bar, k, x_clean) * x_clean + _at(self.sigma, k, x_clean) * eps_t
        beta = _at(self.beta_tp1, k, x_clean)
        return x_t, (1 - beta).sqrt() * x_t + beta.sqrt() * eps_tp1

    def posterior_mean(self, x0_hat: Tensor, x_tp1: Tensor, k: Tensor) -> Tensor:
        """E[x_t | x_tp1, x_clean = x0_hat] = c1·x0_hat + c2·x_tp1, shaped as `x0_hat`."""
        return _at(self.c1, k, x0_hat) * x0_hat + _at(self.c2, k, x_tp1) * x_tp1

    def posterior_sample(
        self, x0_hat: Tensor, x_tp1: Tensor, k: Tensor, eps: Tensor, noise_at_zero: bool = False
    ) -> Tensor:
        """Sample x_t ~ q(x_t | x_tp1, x0_hat).

        At k = 0 the sampler takes the mean, and so does this method unless `noise_at_zero` is set.
        """
        std = _at(self.posterior_std, k, eps)
        if not noise_at_zero:
            std = std * (_at_shape(k, eps) > 0)
        return self.posterior_mean(x0_hat, x_tp1, k) + std * eps

    def log_q(self, x_tp1: Tensor, x_t: Tensor, k: Tensor) -> Tensor:
        """log q(x_tp1 | x_t), the normalised Gaussian log-density, (B,), nats."""
        beta = _at(self.beta_tp1, k, x_t)
        residual = (x_tp1 - (1 - beta).sqrt() * x_t) ** 2 / beta
        return -0.5 * (residual + torch.log(2 * math.pi * beta)).flatten(1).sum(1)


def _at_shape(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (B,) to (B, 1, ..., 1) with as many axes as `like`."""
    return values.view(-1, *([1] * (like.ndim - 1)))


def _at(coefficients: Tensor, k: Tensor, like: Tensor) -> Tensor:
    return _at_shape(coefficients[k], like)
