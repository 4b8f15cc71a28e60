"""The losses against `torch.distributions` and energies whose gradients are known."""

import math

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from ddaebm.model.config import ModelConfig
from ddaebm.model.nets.diffusion import Diffusion
from ddaebm.model.schedule import make_schedule
from ddaebm.training.losses import (
    denoising,
    forward_kl,
    gaussian_log_prob,
    gradient_penalty,
    kl_to_standard_normal,
    means_by_step,
    reverse_kl,
    value_penalty,
)

SCHEDULE = make_schedule(ModelConfig(data_shape=(2,), widths=(8,)))
DIFFUSION = Diffusion(SCHEDULE, dtype=torch.float64)


class Quadratic(nn.Module):
    """E(x, k) = ½·a·‖x - k‖², so that ∇E = a·(x - k)."""

    def __init__(self, a: float = 1.5) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        return 0.5 * self.a * (x - k[:, None]).square().sum(1)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gaussian_log_prob() -> None:
    z, mean, log_var = randn(3, 5, 4)
    expected = Normal(mean, (0.5 * log_var).exp()).log_prob(z).sum(1)
    torch.testing.assert_close(gaussian_log_prob(z, mean, log_var), expected)


def test_kl_to_standard_normal() -> None:
    mean, log_var = randn(2, 5, 4)
    expected = kl_divergence(Normal(mean, (0.5 * log_var).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl_to_standard_normal(mean, log_var), expected)
    assert not kl_to_standard_normal(torch.zeros(2, 4), torch.zeros(2, 4)).any()


def test_reverse_kl_weighs_the_entropy_bound_alone() -> None:
    energy, log_q, log_r = randn(3, 6)
    torch.testing.assert_close(reverse_kl(energy, log_q, log_r, 0.3), energy - log_q - 0.3 * log_r)


def test_forward_kl_is_a_gaussian_elbo_of_variance_one_half() -> None:
    x_t, reconstruction = randn(2, 5, 3, 2, 2)
    mean, log_var = randn(2, 5, 4, seed=1)
    likelihood = Normal(reconstruction, 0.5**0.5).log_prob(x_t).sum((1, 2, 3))
    constant = 12 * Normal(0.0, 0.5**0.5).log_prob(torch.tensor(0.0, dtype=torch.float64))
    expected = constant - likelihood + kl_to_standard_normal(mean, log_var)
    torch.testing.assert_close(forward_kl(x_t, reconstruction, mean, log_var), expected)


def test_forward_kl_takes_a_variance_a_sample() -> None:
    x_t, reconstruction = randn(2, 5, 3, 2, 2)
    mean, log_var = randn(2, 5, 4, seed=1)
    var = torch.tensor([0.001, 0.1, 0.5, 1.0, 2.0], dtype=torch.float64)
    likelihood = Normal(reconstruction, var.sqrt()[:, None, None, None]).log_prob(x_t).sum((1, 2, 3))
    constant = -6 * (2 * math.pi * var).log()
    expected = constant - likelihood + kl_to_standard_normal(mean, log_var)
    torch.testing.assert_close(forward_kl(x_t, reconstruction, mean, log_var, var), expected)


def test_value_penalty_is_half_the_squared_distance_from_the_level() -> None:
    real, generated, level = torch.tensor([1.0, 3, 10]), torch.tensor([2.0, 5, 10]), torch.tensor([2.0, 2, 11])
    torch.testing.assert_close(value_penalty(real, generated, level), 0.5 * torch.tensor([1.0 + 0, 1 + 9, 1 + 1]))


def penalty_of(energy_net: Quadratic, x_t: Tensor, x_tp1: Tensor, k: Tensor, kind: str) -> Tensor:
    x_t = x_t.detach().requires_grad_()
    return gradient_penalty(energy_net(x_t, k), DIFFUSION, x_t, x_tp1, k, kind)


def test_means_by_step() -> None:
    values, k = torch.tensor([1.0, 3, 10, 10]), torch.tensor([0, 0, 2, 2])
    assert means_by_step(values, k, 4, Accelerator(cpu=True)).tolist() == [2, 0, 10, 0]


def test_denoising_is_half_the_squared_distance_as_an_energy_is() -> None:
    guess, clean = randn(2, 5, 3, 2, 2)
    torch.testing.assert_close(denoising(guess, clean), 0.5 * ((guess - clean) ** 2).sum((1, 2, 3)))


def test_r1_is_the_squared_gradient_of_the_energy() -> None:
    x_t, x_tp1, k = randn(6, 2), randn(6, 2, seed=1), torch.tensor([0, 1, 2, 3, 0, 1])
    penalty = penalty_of(Quadratic(), x_t, x_tp1, k, "r1")
    torch.testing.assert_close(penalty, (1.5 * (x_t - k[:, None])).square().sum(1))


def test_conditional_penalty_adds_the_score_of_the_transition() -> None:
    x_t, x_tp1, k = randn(6, 2), randn(6, 2, seed=1), torch.tensor([0, 1, 2, 3, 0, 1])
    beta = torch.as_tensor(SCHEDULE.beta[k + 1])[:, None]
    score = (1 - beta).sqrt() * (x_tp1 - (1 - beta).sqrt() * x_t) / beta
    penalty = penalty_of(Quadratic(), x_t, x_tp1, k, "conditional")
    torch.testing.assert_close(penalty, (1.5 * (x_t - k[:, None]) - score).square().sum(1))


@pytest.mark.parametrize("k", range(4))
def test_penalties_differ_in_expectation_by_a_constant(k: int) -> None:
    """E[conditional] = E[r1] + D·(1 - beta)/beta: the second moment of the transition's score."""
    count = 200_000
    ks, x_clean = torch.full((count,), k), 0.7 * randn(count, 2, seed=2).sign()
    pair = DIFFUSION.forward_pair(x_clean, ks, randn(count, 2, seed=3), randn(count, 2, seed=4))
    r1, conditional = (penalty_of(Quadratic(), *pair, ks, kind) for kind in ("r1", "conditional"))
    beta, difference = SCHEDULE.beta[k + 1], (conditional - r1).detach()
    standard_error = difference.std().item() / count**0.5
    assert difference.mean().item() == pytest.approx(2 * (1 - beta) / beta, abs=4 * standard_error)


def test_penalty_is_differentiable_in_the_energy_s_parameters() -> None:
    x_t, energy_net, k = randn(4, 2), Quadratic(), torch.zeros(4, dtype=torch.long)
    penalty_of(energy_net, x_t, x_t, k, "r1").sum().backward()
    assert energy_net.a.grad is not None
    torch.testing.assert_close(energy_net.a.grad, 2 * 1.5 * x_t.square().sum())


@pytest.mark.parametrize("kind", ["", "R1", "both"])
def test_an_unknown_penalty_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="must be 'r1' or 'conditional'"):
        penalty_of(Quadratic(), randn(1, 2), randn(1, 2), torch.tensor([0]), kind)
