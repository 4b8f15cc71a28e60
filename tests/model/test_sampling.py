"""The reverse process, with generators whose exact output is known."""

from typing import Any

import numpy as np
import pytest
import torch

from ddaebm.model.config import ModelConfig
from ddaebm.model.sampling import Noise, draw_noise, sample
from ddaebm.model.schedule import make_schedule

CONFIG = ModelConfig(data_shape=(3, 4, 4), num_steps=4, latent_dim=5, patch_size=1, widths=(8,))


def toy_generator(x_tp1: Any, z: Any, k: int) -> Any:
    return 0.5 * x_tp1 + 0.1 * (k + 1) * z[:, :1, None, None] - 0.2 * z[:, 1:2, None, None] * x_tp1


def seeds(count: int) -> Any:
    return np.arange(count, dtype=np.int64)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_numpy_and_torch_samplers_agree(num_steps: int) -> None:
    config = ModelConfig(data_shape=(3, 4, 4), num_steps=num_steps, latent_dim=5, patch_size=1, widths=(8,))
    schedule = make_schedule(config)
    ours = sample(toy_generator, schedule, draw_noise(config, seeds(7)))
    theirs = sample(toy_generator, schedule, draw_noise(config, torch.arange(7)))
    assert ours.dtype == np.float32
    assert theirs.dtype == torch.float32
    assert ours.shape == tuple(theirs.shape) == (7, 3, 4, 4)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_a_perfect_generator_walks_back_along_the_forward_marginals(num_steps: int) -> None:
    """From x_T ~ q(x_T | x_clean), x_0 is the posterior mean over x_1 ~ q(x_1 | x_clean)."""
    config = ModelConfig(data_shape=(2,), num_steps=num_steps, latent_dim=1, widths=(8,))
    schedule, x_clean = make_schedule(config), np.array([0.8, -0.5])
    draw = draw_noise(config, seeds(20_000))
    x_T = np.sqrt(schedule.alpha_bar[-1]) * x_clean + schedule.sigma[-1] * draw.x_T
    x_0 = sample(lambda x_tp1, z, k: x_clean, schedule, draw._replace(x_T=x_T))
    std = schedule.c2[0] * schedule.sigma[1]
    standard_error = std / np.sqrt(len(x_0))
    np.testing.assert_allclose(x_0.mean(0), np.sqrt(schedule.alpha_bar[0]) * x_clean, atol=5 * standard_error)
    np.testing.assert_allclose(x_0.std(0), std, rtol=0.03)


def test_generator_is_called_once_a_step_from_the_noisiest_with_its_own_latent() -> None:
    draw, calls = draw_noise(CONFIG, seeds(3)), []

    def generator(x_tp1: Any, z: Any, k: int) -> Any:
        calls.append(k)
        np.testing.assert_array_equal(z, draw.z[:, k])
        return x_tp1

    sample(generator, make_schedule(CONFIG), draw)
    assert calls == [3, 2, 1, 0]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_each_transition_but_the_last_uses_its_noise_exactly_once(k: int) -> None:
    schedule = make_schedule(CONFIG)
    noise = np.zeros((1, 3, 3, 4, 4))
    noise[:, k - 1] = 1.0
    draw = Noise(x_T=np.zeros((1, 3, 4, 4)), z=np.zeros((1, 4, 5)), noise=noise)
    x_0 = sample(lambda x_tp1, z, k: np.zeros_like(x_tp1), schedule, draw)
    expected = np.exp(schedule.posterior_log_var[k] / 2) * np.prod(schedule.c2[:k])
    np.testing.assert_allclose(x_0, expected, rtol=1e-12)


def test_noise_is_shaped_by_the_config_and_the_seed_alone() -> None:
    draw = draw_noise(CONFIG, seeds(6))
    assert [part.shape for part in draw] == [(6, 3, 4, 4), (6, 4, 5), (6, 3, 3, 4, 4)]
    assert {part.dtype for part in draw} == {np.dtype(np.float32)}
    for part, alone in zip(draw, draw_noise(CONFIG, np.array([4], dtype=np.int64)), strict=True):
        np.testing.assert_array_equal(part[4], alone[0])
    everything = np.concatenate([part.ravel() for part in draw])
    assert len(np.unique(everything)) == everything.size  # no number is used twice


def test_a_single_step_needs_no_noise() -> None:
    config = ModelConfig(data_shape=(2,), num_steps=1, widths=(8,))
    assert draw_noise(config, seeds(3)).noise.shape == (3, 0, 2)
    assert tuple(draw_noise(config, torch.arange(3)).noise.shape) == (3, 0, 2)
