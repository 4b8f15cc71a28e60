"""The variance-preserving noise schedule, computed once in float64.

The continuous form is eq. 33 of Song et al. 2021, *Score-Based Generative Modeling through SDEs*. Its discretisation
into a few large steps, and the posterior, follow Xiao et al. 2022, *Denoising Diffusion GANs*.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.config import ModelConfig

POSTERIOR_VAR_FLOOR = 1e-4


@dataclass(frozen=True)
class Schedule:
    """Coefficients of T transitions between T + 1 states.

    State k is x_k = sqrt(alpha_bar[k])·x_clean + sigma[k]·eps. State 0 is not clean: it has the noise of time t_0.
    Transition k (0..T-1) goes from x_t = x_k to x_tp1 = x_{k+1}.
    """

    alpha_bar: NDArray[np.float64]  # (T+1,)
    sigma: NDArray[np.float64]  # (T+1,) sqrt(1 - alpha_bar)
    beta: NDArray[np.float64]  # (T+1,) beta[k+1] is the variance that transition k adds
    c1: NDArray[np.float64]  # (T,) weight of x_clean in the posterior mean
    c2: NDArray[np.float64]  # (T,) weight of x_tp1 in the posterior mean
    posterior_log_var: NDArray[np.float64]  # (T,)

    @property
    def num_steps(self) -> int:
        """T, the number of transitions."""
        return len(self.c1)


def make_schedule(config: ModelConfig) -> Schedule:
    """Compute the schedule of `config` at times t_k = eps + (1 - eps)·k/T, k = 0..T, with eps = `time_eps`."""
    t = config.time_eps + (1 - config.time_eps) * np.arange(config.num_steps + 1) / config.num_steps
    alpha_bar = np.exp(-(t**2) * (config.beta_max - config.beta_min) / 2 - t * config.beta_min)
    beta = 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])

    # The posterior q(x_t | x_tp1, x_clean) is a product of two Gaussians in x_t.
    beta_tp1 = beta[1:]
    alpha_bar_t, alpha_bar_tp1 = alpha_bar[:-1], alpha_bar[1:]
    c1 = beta_tp1 * np.sqrt(alpha_bar_t) / (1 - alpha_bar_tp1)
    c2 = (1 - alpha_bar_t) * np.sqrt(1 - beta_tp1) / (1 - alpha_bar_tp1)
    var = beta_tp1 * (1 - alpha_bar_t) / (1 - alpha_bar_tp1)

    return Schedule(
        alpha_bar=alpha_bar,
        sigma=np.sqrt(1 - alpha_bar),
        beta=beta,
        c1=c1,
        c2=c2,
        posterior_log_var=np.log(np.maximum(var, POSTERIOR_VAR_FLOOR)),
    )
