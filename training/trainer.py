"""The training loop, with checkpoints, metrics and sample grids.

The randomness, the batch and the learning rate of a step depend only on its number. So a checkpoint holds weights,
optimiser moments and one integer, and on CPU a resumed run repeats the uninterrupted run bit for bit.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from ddaebm.model.errors import ConfigError, NonFiniteLossError
from ddaebm.model.files import encode_npy
from ddaebm.model.images.encode import encode_png, make_grid
from ddaebm.model.nets.diffusion import Diffusion
from ddaebm.model.nets.graphs import to_pixels
from ddaebm.model.noise import image_seeds
from ddaebm.model.sampling import draw_noise, sample
from ddaebm.model.schedule import make_schedule
from ddaebm.training import checkpoint
from ddaebm.training.config import TrainConfig
from ddaebm.training.data import batch_at, flip_images, to_tensor
from ddaebm.training.interrupt import Interrupt
from ddaebm.training.log import Meter, RunLog
from ddaebm.training.objective import DDAEBMLoss, Draws
from ddaebm.training.step import TrainState, draw, make_state, train_step


def train(
    config: TrainConfig,
    data: NDArray[Any],
    run: Path,
    device: str = "auto",
    make: Callable[[TrainConfig, torch.device], TrainState] = make_state,
    observe: Callable[[TrainState], None] | None = None,
    make_loss: Callable[[TrainConfig, Diffusion, Accelerator], DDAEBMLoss] = DDAEBMLoss,
) -> TrainState:
    """Train to `config.steps`. Resume from the newest checkpoint of `run` if there is one.

    On SIGINT or SIGTERM a single process finishes the current step, writes a checkpoint and returns.

    Args:
        data: The training part of the data, uint8 (N, H, W, C) or float32 (N, D).
        run: Folder for checkpoints, metrics.jsonl, TensorBoard events and sample grids.
        device: "cpu", "cuda", or "auto" to let accelerate choose.
        make: Makes the state at step 0.
        observe: Called every `sample_every` steps and after the last one, on the main process. After a kill, it is
            called again for each repeated step.
        make_loss: The training method, as for `train_step`.

    Raises:
        NonFiniteLossError: A loss term or weight is not finite. The last checkpoint is kept.
        CheckpointError: The checkpoint does not belong to this config.
        ConfigError: The device is not available.
    """
    accelerator = _make_accelerator(device)
    state = make(config, accelerator.device)
    checkpoint.resume(run, state, config)
    if accelerator.is_main_process:
        checkpoint.write_config(run, config)
    diffusion = Diffusion(make_schedule(config.network), accelerator.device)
    with (
        RunLog(run, first_step=state.step, total=config.steps, enabled=accelerator.is_main_process) as log,
        Interrupt(enabled=accelerator.num_processes == 1) as interrupt,
    ):
        meter = Meter(state.step)
        last = state.step >= config.steps
        while not last:
            if config.encoder_steps:
                state.train_encoder_only(state.step < config.encoder_steps)
            x_clean, draws = _batch_and_draws(config, data, state.step, accelerator)
            meter.add(train_step(config, diffusion, state, x_clean, draws, accelerator, make_loss))

            last = state.step >= config.steps or bool(interrupt)
            if last or state.step % config.log_every == 0 or state.step % config.checkpoint_every == 0:
                metrics = meter.read(state.step, accelerator)
                _require_finite(metrics, state, run)
                log.write(state.step, metrics)
            if not accelerator.is_main_process:
                continue
            if last or state.step % config.sample_every == 0:
                log.samples(state.step, *render_samples(config, state))
                if observe:
                    observe(state)
            if last or state.step % config.checkpoint_every == 0:
                checkpoint.save(run, state, config)
    return state


def _make_accelerator(device: str) -> Accelerator:
    accelerator = Accelerator(cpu=device == "cpu")
    if device not in ("auto", accelerator.device.type):
        raise ConfigError(f"device {device!r} is not available; use {accelerator.device.type!r} or 'auto'")
    return accelerator


def _batch_and_draws(
    config: TrainConfig, data: NDArray[Any], step: int, accelerator: Accelerator
) -> tuple[Tensor, Draws]:
    """This process's share of the batch, (B, *data_shape), and of the random numbers of `step`.

    Each process draws for the joint batch and keeps its part. So several processes train like one with a larger batch.
    """
    rank, joint = accelerator.process_index, config.batch_size * accelerator.num_processes
    mine = slice(rank * config.batch_size, (rank + 1) * config.batch_size)
    draws = Draws(*(values[mine] for values in draw(config, step, joint, accelerator.device)))
    x_clean = to_tensor(batch_at(data, step, joint, config.seed)[mine], accelerator.device)
    return (flip_images(x_clean, draws.side) if config.flip else x_clean), draws


def _require_finite(metrics: dict[str, float], state: TrainState, run: Path) -> None:
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    # The metrics are from before the last update, which may have made weights non-finite.
    bad += [name for name, net in state.networks.items() if not all(p.isfinite().all() for p in net.parameters())]
    if bad:
        raise NonFiniteLossError(
            f"step {state.step}: {', '.join(bad)} not finite; the last checkpoint in {run} is kept."
            " Resume with a lower learning rate or a larger gamma"
        )


@torch.no_grad()
def generate(config: TrainConfig, generator: nn.Module, seeds: NDArray[np.int64]) -> Tensor:
    """Samples of `generator`, (B, *data_shape), one per seed, drawn as the exported sampler does."""
    device = next(generator.parameters()).device
    noise = draw_noise(config.network, torch.from_numpy(seeds).to(device))

    def call(x_tp1: Tensor, z: Tensor, k: int) -> Tensor:
        x0_hat: Tensor = generator(x_tp1, z, torch.full((len(x_tp1),), k, device=device))
        return x0_hat

    samples: Tensor = sample(call, make_schedule(config.network), noise)
    return samples


def render_samples(config: TrainConfig, state: TrainState, count: int = 64) -> tuple[str, bytes]:
    """Samples of the averaged generator as (file suffix, contents): a PNG grid of images, or 2,000 points as .npy."""
    if config.network.is_image:
        return ".png", encode_png(
            make_grid(to_pixels(generate(config, state.generator_ema, image_seeds(0, count))).cpu().numpy())
        )
    points = generate(config, state.generator_ema, image_seeds(0, 2_000)).cpu().numpy()
    return ".npy", encode_npy(points)
