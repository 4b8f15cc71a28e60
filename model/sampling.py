"""The reverse process: one loop for numpy and torch, at export, in tests and in training."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ddaebm.model.config import ModelConfig
from ddaebm.model.noise import normal_streams
from ddaebm.model.schedule import Schedule


class Noise(NamedTuple):
    """All randomness of a batch of B samples."""

    x_T: Any  # (B, *data_shape)
    z: Any  # (B, T, latent_dim), z[:, k] for transition k
    noise: Any  # (B, T-1, *data_shape), noise[:, k-1] for transition k; transition 0 adds none


def draw_noise(config: ModelConfig, seeds: Any) -> Noise:
    """Noise of one sample a seed; seeds int64 (B,), numpy or torch."""
    batch, steps, shape = len(seeds), config.num_steps, config.data_shape
    size = math.prod(shape)
    x_T, z, noise = normal_streams(seeds, {0: size, 1: steps * config.latent_dim, 2: (steps - 1) * size})
    return Noise(
        x_T.reshape(batch, *shape),
        z.reshape(batch, steps, config.latent_dim),
        noise.reshape(batch, steps - 1, *shape),
    )


def sample(
    generator: Callable[[Any, Any, int], Any],
    schedule: Schedule,
    draw: Noise,
    callback: Callable[[int, Any, Any], object] | None = None,
) -> Any:
    """Ancestral sampling with T calls of `generator(x_tp1, z, k) -> x0_hat`.

    Draws x_t ~ q(x_t | x_tp1, x0_hat) for k = T-1..1 and takes the posterior mean at k = 0. After each step
    `callback(k, x_t, x0_hat)` is called.

    Returns:
        x_0, shaped and typed as `draw.x_T`.
    """
    x_t = draw.x_T
    for k in reversed(range(schedule.num_steps)):
        x_tp1 = x_t
        x0_hat = generator(x_tp1, draw.z[:, k], k)
        # Python floats: a float64 scalar of numpy would widen float32 arrays.
        x_t = float(schedule.c1[k]) * x0_hat + float(schedule.c2[k]) * x_tp1
        if k > 0:
            x_t = x_t + math.exp(schedule.posterior_log_var[k] / 2) * draw.noise[:, k - 1]
        if callback:
            callback(k, x_t, x0_hat)
    return x_t
