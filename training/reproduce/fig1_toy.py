"""Figure 1: data, samples and the density exp(-E) at state 0, for points in the plane."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from ddaebm.model.errors import ConfigError
from ddaebm.model.files import encode_npy, write_file
from ddaebm.model.nets.networks import EnergyNet
from ddaebm.model.noise import image_seeds
from ddaebm.training.config import TrainConfig
from ddaebm.training.data import GAUSSIAN_CENTRES, GAUSSIAN_STD, load_data, split
from ddaebm.training.log import seconds_logged
from ddaebm.training.modes import grid_kl, mode_report
from ddaebm.training.recipes import make_config
from ddaebm.training.reproduce.figure import encode_figure, train_to_the_end
from ddaebm.training.trainer import generate

# Settings of the recipe `toy` that differ for a data set. The long roll needs a stronger value penalty.
DATASETS: dict[str, dict[str, str]] = {"25-gaussians": {}, "pinwheel": {}, "swiss-roll": {"value_penalty": "0.1"}}
RECIPES = ("toy", "toy-paper")
SAMPLES = 10_000
AXIS = np.linspace(-3, 3, 300)
GRID = np.stack(np.meshgrid(AXIS, AXIS), -1)  # (300, 300, 2): row y, column x


def reproduce(
    out: Path, recipe: str = "toy", dataset: str = "25-gaussians", seed: int = 0, steps: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:  # fmt: skip
    """Train, or resume the run in `out`, and write figure.png, metrics.json, samples.npy, log_density.npy.

    Returns:
        The contents of metrics.json. All data sets have `nll`, the mean negative log-density of held-out points in
        nats, `steps`, `seconds` of training and `steps_per_second`. The 25 Gaussians also have the metrics of
        `training.modes.mode_report` and `kl_density`, KL(true ‖ density) on the grid in nats.

    Raises:
        ConfigError: There is no such recipe or data set, or `out` holds a run with other settings.
        KeyboardInterrupt: A signal stopped it.
    """
    if recipe not in RECIPES or dataset not in DATASETS:
        raise ConfigError(f"the toy figure has the recipes {', '.join(RECIPES)} and the sets {', '.join(DATASETS)}")
    config = make_config(recipe)
    overrides = {"data": dataset, "seed": str(seed), "steps": str(steps or config.steps)}
    if recipe == "toy":
        overrides |= DATASETS[dataset]
    config, run = config.override(overrides), out / "run"
    parts = split(load_data(config.data, config.network))
    state = train_to_the_end(config, parts.train, run, device)

    samples = generate(config, state.generator_ema, image_seeds(seed, SAMPLES)).cpu().numpy()
    log_density = energy_log_density(state.energy_net_ema, GRID)
    seconds = seconds_logged(run)
    metrics: dict[str, Any] = {"recipe": recipe, "dataset": dataset, "seed": seed}
    if dataset == "25-gaussians":
        metrics |= mode_report(samples, GAUSSIAN_CENTRES, GAUSSIAN_STD)
        metrics["kl_density"] = grid_kl(log_25_gaussians(GRID), log_density)
    metrics["nll"] = _held_out_nll(state.energy_net_ema, log_density, parts.choice)
    metrics |= {"steps": state.step, "seconds": seconds, "steps_per_second": state.step / seconds}

    write_file(out / "samples.npy", encode_npy(samples))
    write_file(out / "log_density.npy", encode_npy(log_density))
    write_file(out / "figure.png", encode_figure(_draw(config, parts.train, samples, log_density)))
    write_file(out / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())
    return metrics


@torch.no_grad()
def energy_log_density(energy_net: EnergyNet, points: NDArray[np.float64]) -> NDArray[np.float32]:
    """-E(x, 0), the unnormalised log-density of state 0 in nats, (...), at points (..., 2)."""
    device = next(energy_net.parameters()).device
    flat = torch.as_tensor(points.reshape(-1, 2), dtype=torch.float32, device=device)
    energy = energy_net(flat, torch.zeros(len(flat), dtype=torch.long, device=device))
    log_density: NDArray[np.float32] = -energy.cpu().numpy().reshape(points.shape[:-1])
    return log_density


def log_25_gaussians(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-density of the 25 Gaussians in nats, (...), at points (..., 2)."""
    square = np.square(points[..., None, :] - GAUSSIAN_CENTRES).sum(-1) / GAUSSIAN_STD**2
    log_density: NDArray[np.float64] = logsumexp(-0.5 * square, axis=-1) - np.log(25 * 2 * np.pi * GAUSSIAN_STD**2)
    return log_density


def _held_out_nll(energy_net: EnergyNet, log_density: NDArray[np.float32], points: NDArray[np.float32]) -> float:
    """Mean negative log-density of points (N, 2) in nats. The sum over the grid is the normaliser."""
    log_normaliser = logsumexp(log_density.astype(np.float64)) + 2 * np.log(AXIS[1] - AXIS[0])
    return float(log_normaliser - energy_log_density(energy_net, points.astype(np.float64)).mean())


def _draw(
    config: TrainConfig, data: NDArray[np.float32], samples: NDArray[np.float32], log_density: NDArray[np.float32]
) -> Figure:
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharex=True, sharey=True)
    for axes, title, points in ((left, "data", data[:SAMPLES]), (middle, "samples", samples)):
        axes.scatter(*points.T, s=1, alpha=0.3, linewidths=0)
        axes.set_title(f"{title}, {len(points):,}")
    density = np.exp(log_softmax(log_density.astype(np.float64), axis=None))
    extent = (AXIS[0], AXIS[-1], AXIS[0], AXIS[-1])
    right.imshow(density, origin="lower", extent=extent, vmax=np.quantile(density, 0.995))
    right.set_title("density, exp(-E)")
    for axes in (left, middle, right):
        axes.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal")
    figure.suptitle(f"{config.data}, recipe {config.recipe}, {config.steps:,} steps, seed {config.seed}")
    return figure
