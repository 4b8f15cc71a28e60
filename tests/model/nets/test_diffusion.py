"""The forward process on tensors, against its schedule and `torch.distributions`."""

import pytest
import torch
from torch.distributions import Normal

from ddaebm.model.config import ModelConfig
from ddaebm.model.nets.diffusion import Diffusion
from ddaebm.model.schedule import make_schedule

SHAPE = (2, 4, 4)
SCHEDULE = make_schedule(ModelConfig(data_shape=SHAPE, patch_size=1, widths=(8,)))
DIFFUSION = Diffusion(SCHEDULE, dtype=torch.float64)
K = torch.tensor([0, 1, 2, 3, 1])


def randn(count: int, seed: int = 0) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(len(K), *SHAPE, generator=rng, dtype=torch.float64) for _ in range(count)]


def column(values: object) -> torch.Tensor:
    return torch.as_tensor(values)[:, None, None, None]


def test_forward_pair_has_the_marginals_of_its_states() -> None:
    x, one, zero = *randn(1), torch.ones(len(K), *SHAPE, dtype=torch.float64), torch.zeros(len(K), *SHAPE)
    mean_t, mean_tp1 = DIFFUSION.forward_pair(x, K, zero, zero)
    torch.testing.assert_close(mean_t, column(SCHEDULE.alpha_bar[K] ** 0.5) * x)
    torch.testing.assert_close(mean_tp1, column(SCHEDULE.alpha_bar[K + 1] ** 0.5) * x)
    # Coefficients of the two draws, one at a time; their squares add up to the variance.
    a_t, a_tp1 = DIFFUSION.forward_pair(zero, K, one, zero)
    b_t, b_tp1 = DIFFUSION.forward_pair(zero, K, zero, one)
    torch.testing.assert_close(a_t**2, column(1 - SCHEDULE.alpha_bar[K]) * one)
    torch.testing.assert_close(a_tp1**2 + b_tp1**2, column(1 - SCHEDULE.alpha_bar[K + 1]) * one)
    assert not b_t.any()


def test_log_q_is_the_gaussian_log_density_of_the_transition() -> None:
    x_t, x_tp1 = randn(2)
    beta = column(SCHEDULE.beta[K + 1])
    expected = Normal((1 - beta).sqrt() * x_t, beta.sqrt()).log_prob(x_tp1).sum((1, 2, 3))
    torch.testing.assert_close(DIFFUSION.log_q(x_tp1, x_t, K), expected)


def test_posterior_mean_weighs_x_clean_and_x_tp1() -> None:
    x0_hat, x_tp1 = randn(2)
    expected = column(SCHEDULE.c1[K]) * x0_hat + column(SCHEDULE.c2[K]) * x_tp1
    torch.testing.assert_close(DIFFUSION.posterior_mean(x0_hat, x_tp1, K), expected)


def test_posterior_sample_adds_noise_except_at_the_last_transition() -> None:
    x0_hat, x_tp1, eps = randn(3)
    added = DIFFUSION.posterior_sample(x0_hat, x_tp1, K, eps) - DIFFUSION.posterior_mean(x0_hat, x_tp1, K)
    assert torch.equal(added[0], torch.zeros(SHAPE, dtype=torch.float64))
    std = torch.as_tensor(SCHEDULE.posterior_log_var).mul(0.5).exp()
    torch.testing.assert_close(added[1:], column(std[K[1:]]) * eps[1:])
    everywhere = DIFFUSION.posterior_sample(x0_hat, x_tp1, K, eps, noise_at_zero=True)
    torch.testing.assert_close(everywhere - DIFFUSION.posterior_mean(x0_hat, x_tp1, K), column(std[K]) * eps)


@pytest.mark.parametrize("k", range(4))
def test_bayes_rule_ties_posterior_prior_and_transition_together(k: int) -> None:
    """q(x_t | x_tp1, x_clean)·q(x_tp1 | x_clean) = q(x_tp1 | x_t)·q(x_t | x_clean), at every point."""
    schedule = make_schedule(ModelConfig(data_shape=(1,), time_eps=0.3, widths=(8,)))  # above the floor
    diffusion, ks = Diffusion(schedule, dtype=torch.float64), torch.full((6,), k)
    x_clean, x_t, x_tp1 = torch.randn(3, 6, 1, generator=torch.Generator().manual_seed(k), dtype=torch.float64)

    def marginal(state: int) -> Normal:
        return Normal(schedule.alpha_bar[state] ** 0.5 * x_clean, torch.tensor(schedule.sigma[state]))

    posterior = Normal(diffusion.posterior_mean(x_clean, x_tp1, ks), diffusion.posterior_std[k])
    left = posterior.log_prob(x_t) + marginal(k + 1).log_prob(x_tp1)
    right = diffusion.log_q(x_tp1, x_t, ks)[:, None] + marginal(k).log_prob(x_t)
    torch.testing.assert_close(left, right)


def test_float32_is_the_default() -> None:
    x = torch.zeros(1, *SHAPE)
    assert Diffusion(SCHEDULE).forward_pair(x, torch.tensor([0]), x, x)[1].dtype == torch.float32
