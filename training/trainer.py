"""The loop: batches in, checkpoints, metrics and samples out.

The randomness, the batch and the learning rate of a step are functions of its number. So a checkpoint is
weights, optimiser moments and one integer, and a resumed run repeats the uninterrupted one bit for bit on CPU.
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
from ddaebm.training.data import batch_at, to_tensor
from ddaebm.training.interrupt import Interrupt
from ddaebm.training.log import Meter, RunLog
from ddaebm.training.step import Draws, TrainState, draw, make_state, train_step


def train(
    config: TrainConfig,
    data: NDArray[Any],
    run: Path,
    device: str = "auto",
    make: Callable[[TrainConfig, torch.device], TrainState] = make_state,
    observe: Callable[[TrainState], None] | None = None,
) -> TrainState:
    """Train to `config.steps`, resuming from the newest checkpoint of `run` where there is one.

    One process that is asked to stop by SIGINT or SIGTERM does so after the step under way, with a checkpoint.

    Args:
        data: the training part alone, uint8 (N, H, W, C) or float32 (N, D).
        run: folder of checkpoints, metrics.jsonl, TensorBoard events and sample grids.
        device: "cpu", "cuda", or "auto" for what accelerate finds.
        make: the state at step 0.
        observe: called every `sample_every` steps and after the last one, on the main process; again for a step that
            is repeated after a kill.

    Raises:
        NonFiniteLossError: a loss term is not finite; the last checkpoint is kept.
        CheckpointError: the checkpoint does not belong to this config.
        ConfigError: there is no such device.
    """
    accelerator = Accelerator(cpu=device == "cpu")
    if device not in ("auto", accelerator.device.type):
        raise ConfigError(f"device {device!r} is not to be had here; {accelerator.device.type!r} is")
    state = make(config, accelerator.device)
    checkpoint.resume(run, state, config)
    if accelerator.is_main_process:
        checkpoint.write_config(run, config)
    diffusion = Diffusion(make_schedule(config.network), accelerator.device)
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = slice(rank * config.batch_size, (rank + 1) * config.batch_size)

    with (
        RunLog(run, first_step=state.step, total=config.steps, enabled=accelerator.is_main_process) as log,
        Interrupt(enabled=world == 1) as interrupt,
    ):
        meter = Meter(state.step)
        last = state.step >= config.steps
        while not last:
            # Each process draws for the joint batch and keeps its share: the sum is one process's run.
            joint = config.batch_size * world
            batch = batch_at(data, state.step, joint, config.seed)[mine]
            draws = Draws(*(values[mine] for values in draw(config, state.step, joint, accelerator.device)))
            meter.add(train_step(config, diffusion, state, to_tensor(batch, accelerator.device), draws, accelerator))

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


def _require_finite(metrics: dict[str, float], state: TrainState, run: Path) -> None:
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    # The terms are from before the last update, so that it may have spoilt the weights unseen.
    bad += [name for name, net in state.networks.items() if not all(p.isfinite().all() for p in net.parameters())]
    if bad:
        raise NonFiniteLossError(
            f"step {state.step}: {', '.join(bad)} not finite; the last checkpoint in {run} is kept."
            " Resume with a lower learning rate or a larger gamma"
        )


@torch.no_grad()
def generate(config: TrainConfig, generator: nn.Module, seeds: NDArray[np.int64]) -> Tensor:
    """Samples of `generator`, (B, *data_shape): the sampler that the bundle carries."""
    device = next(generator.parameters()).device
    noise = draw_noise(config.network, torch.from_numpy(seeds).to(device))

    def call(x_tp1: Tensor, z: Tensor, k: int) -> Tensor:
        x0_hat: Tensor = generator(x_tp1, z, torch.full((len(x_tp1),), k, device=device))
        return x0_hat

    samples: Tensor = sample(call, make_schedule(config.network), noise)
    return samples


def render_samples(config: TrainConfig, state: TrainState, count: int = 64) -> tuple[str, bytes]:
    """(file suffix, contents): a PNG grid of images, or an .npy of points."""
    if config.network.is_image:
        return ".png", encode_png(
            make_grid(to_pixels(generate(config, state.generator_ema, image_seeds(0, count))).cpu().numpy())
        )
    points = generate(config, state.generator_ema, image_seeds(0, 2_000)).cpu().numpy()
    return ".npy", encode_npy(points)
