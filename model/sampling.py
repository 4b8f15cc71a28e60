"""The reverse process. Export, engines, training and tests share this one loop, for NumPy and torch."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ddaebm.model.config import ModelConfig
from ddaebm.model.noise import normal_streams
from ddaebm.model.schedule import Schedule


class Noise(NamedTuple):
    """All random numbers for a batch of B samples."""

    x_T: Any  # (B, *data_shape)
    z: Any  # (B, T, latent_dim), z[:, k] for transition k
    noise: Any  # (B, T-1, *data_shape), noise[:, k-1] for transition k; transition 0 adds no noise


def draw_noise(config: ModelConfig, seeds: Any) -> Noise:
    """Draw the noise of one sample for each seed. `seeds` is int64 (B,), NumPy or torch; so is the noise, float32."""
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
    """Ancestral sampling (Xiao et al. 2022, *Denoising Diffusion GANs*) with T generator calls.

    Draws x_t ~ q(x_t | x_tp1, x0_hat) for k = T-1..1, and takes the posterior mean at k = 0.

    Args:
        generator: Called as `generator(x_tp1, z, k)`; returns x0_hat, (B, *data_shape).
        callback: Called as `callback(k, x_t, x0_hat)` after each step.

    Returns:
        x_0, with the shape and type of `draw.x_T`.
    """
    x_t = draw.x_T
    for k in reversed(range(schedule.num_steps)):
        x_tp1 = x_t
        x0_hat = generator(x_tp1, draw.z[:, k], k)
        # Convert to Python floats, because NumPy's float64 scalars would turn float32 arrays into float64.
        x_t = float(schedule.c1[k]) * x0_hat + float(schedule.c2[k]) * x_tp1
        if k > 0:
            x_t = x_t + math.exp(schedule.posterior_log_var[k] / 2) * draw.noise[:, k - 1]
        if callback:
            callback(k, x_t, x0_hat)
    return x_t
