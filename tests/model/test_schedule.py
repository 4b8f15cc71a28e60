"""Schedule coefficients, compared with direct Gaussian conditioning."""

import numpy as np
import pytest

from ddaebm.model.config import ModelConfig
from ddaebm.model.schedule import POSTERIOR_VAR_FLOOR, Schedule, make_schedule

STEPS = [1, 2, 4, 8]


def schedule(num_steps: int, **settings: float) -> Schedule:
    return make_schedule(ModelConfig(data_shape=(2,), num_steps=num_steps, **settings))


@pytest.mark.parametrize("num_steps", STEPS)
def test_shapes_and_precision(num_steps: int) -> None:
    s = schedule(num_steps)
    assert s.num_steps == num_steps
    assert {s.alpha_bar.shape, s.sigma.shape, s.beta.shape} == {(num_steps + 1,)}
    assert {s.c1.shape, s.c2.shape, s.posterior_log_var.shape} == {(num_steps,)}
    assert all(getattr(s, name).dtype == np.float64 for name in Schedule.__dataclass_fields__)


@pytest.mark.parametrize("num_steps", STEPS)
def test_alpha_bar_is_the_product_of_one_minus_beta(num_steps: int) -> None:
    s = schedule(num_steps)
    np.testing.assert_allclose(s.alpha_bar, np.cumprod(1 - s.beta), rtol=1e-9)
    np.testing.assert_allclose(s.sigma**2 + s.alpha_bar, 1, rtol=1e-12)
    assert np.all((s.beta > 0) & (s.beta < 1))


@pytest.mark.parametrize(("beta_min", "beta_max"), [(0.1, 20.0), (0.5, 3.0), (1.0, 1.0)])
def test_alpha_bar_integrates_the_linear_noise_rate(beta_min: float, beta_max: float) -> None:
    s = schedule(4, beta_min=beta_min, beta_max=beta_max, time_eps=0.01)
    for k in range(5):
        t = np.linspace(0, 0.01 + 0.99 * k / 4, 2001)
        integral = np.trapezoid(beta_min + t * (beta_max - beta_min), t)
        assert s.alpha_bar[k] == pytest.approx(np.exp(-integral), rel=1e-10)


@pytest.mark.parametrize("num_steps", STEPS)
def test_first_state_is_almost_clean_and_last_almost_noise(num_steps: int) -> None:
    s = schedule(num_steps)
    assert s.sigma[0] == pytest.approx(0.0105, abs=5e-4)
    assert s.alpha_bar[-1] < 1e-4


@pytest.mark.parametrize("num_steps", STEPS)
def test_posterior_is_the_joint_gaussian_conditioned_on_x_tp1_and_x_clean(num_steps: int) -> None:
    """(x_clean, x_t, x_tp1) with x_clean ~ N(0, 1) is jointly Gaussian; condition its covariance."""
    s = schedule(num_steps)
    for k in range(num_steps):
        # Each state as a row over the independent unit normals (x_clean, eps, eps').
        x_clean = np.array([1.0, 0, 0])
        x_t = np.array([np.sqrt(s.alpha_bar[k]), np.sqrt(1 - s.alpha_bar[k]), 0])
        x_tp1 = np.sqrt(1 - s.beta[k + 1]) * x_t + np.array([0, 0, np.sqrt(s.beta[k + 1])])
        given = np.stack([x_clean, x_tp1])
        weights = np.linalg.solve(given @ given.T, given @ x_t)
        variance = x_t @ x_t - weights @ given @ x_t
        np.testing.assert_allclose([s.c1[k], s.c2[k]], weights, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(np.exp(s.posterior_log_var[k]), max(variance, POSTERIOR_VAR_FLOOR), rtol=1e-8)


def test_posterior_variance_is_floored_where_it_vanishes() -> None:
    s = schedule(1, time_eps=1e-6)
    assert s.posterior_log_var[0] == np.log(POSTERIOR_VAR_FLOOR)
