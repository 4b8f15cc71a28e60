"""Figure 2: compare the learnt density with the true one, on data from a known density.

The data are samples of a flow, NICE (Dinh et al. 2014, *NICE: Non-linear Independent Components Estimation*), and the
energy of the model is a flow as well. Both log-likelihoods are exact, so that they can be compared (the protocol of
Grathwohl et al. 2021, *No MCMC for Me*). Everything is computed in whitened coordinates. There the networks start with
the exact solution for Gaussian data, and training learns the rest.
"""

import dataclasses
import hashlib
import math
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from ddaebm.model.config import ModelConfig
from ddaebm.model.files import write_file
from ddaebm.model.images.contract import Contract
from ddaebm.model.nets.device import choose_device
from ddaebm.model.nets.graphs import to_pixels
from ddaebm.model.noise import image_seeds
from ddaebm.model.progress import progress
from ddaebm.model.schedule import make_schedule
from ddaebm.training.classifier import Classifier, classifier_bytes, describe_images, read_classifier, train_classifier
from ddaebm.training.config import TrainConfig
from ddaebm.training.data import split
from ddaebm.training.labels import Labelled, read_labelled
from ddaebm.training.modes import frechet_distance
from ddaebm.training.reproduce.figure import (
    Arrays,
    claim,
    curve,
    keep,
    require_data,
    seeded,
    show_images,
    stage,
    train_to_the_end,
    write_results,
)
from ddaebm.training.reproduce.flow import FlowEnergy, Nice, Whitening, draws, fit_truth, mean_log_prob
from ddaebm.training.reproduce.gaussian import begin_as_gaussian
from ddaebm.training.reproduce.wgan import train_wgan_gp, wgan_samples
from ddaebm.training.step import TrainState, make_state
from ddaebm.training.trainer import generate

TRAIN, HELD_OUT = 40_000, 10_000  # samples of the true flow
BATCH = 128
POINTS = 8  # measurements during training


def recipe(dim: int, steps: int, seed: int) -> TrainConfig:
    """The configuration for adversarial training of a flow with `dim` coordinates.

    - `entropy_weight` is 1, so that exp(-E) is the density.
    - There is one latent per dimension, because every dimension contains noise.
    - `value_penalty` keeps energies near those of the data. Without it they diverged.
    - `forward_weight` is small. The forward KL pulls the generator to the data regardless of the energy, so that the
      energy would get no signal where it is wrong.
    """
    network = ModelConfig(data_shape=(dim,), latent_dim=dim, widths=(512, 512), beta_max=5.0, linear_skip=True)
    return TrainConfig(recipe="nice", network=network, data="", steps=steps, batch_size=BATCH, seed=seed,
                       lr_generator=1e-3, lr_energy=2e-4, gamma=0.01, penalty_every=4, value_penalty=0.003,
                       entropy_weight=1.0, forward_weight=0.1, likelihood_floor=0.01, noise_at_zero=True, log_every=200,
                       sample_every=max(steps // POINTS, 1), checkpoint_every=max(steps // POINTS, 1))  # fmt: skip


def reproduce(
    out: Path, data: str | None = None, size: int = 14, steps: int = 3_000, seed: int = 0, device: str = "auto",
) -> dict[str, Any]:  # fmt: skip
    """Fit the true flow, train an energy model and a WGAN-GP on its samples, and compare them.

    Writes figure.png, metrics.json and arrays.npz to `out`. An interrupted call resumes.

    Args:
        data: PATH of MNIST's training images, with the labels beside them.
        size: Side to which images are resized; the flows have size² dimensions.
        steps: Training steps of the energy model and of the WGAN-GP. The true flow is trained for a third of them.

    Returns:
        The contents of metrics.json. `log_likelihood` is the mean over 10,000 held-out samples of the true flow, in
        nats for whitened images: under the true flow (`truth`), the energy model (`ours`), the critic as a density
        (`wgan_gp`) and a Gaussian of the same covariance (`gaussian`). `gap` is the difference to the truth, which is
        KL(true ‖ model); `gap_by_step` is that of `ours` during training. `fd_classifier` is the Fréchet distance of
        10,000 samples of each model; further samples of the true flow (`truth`) give the floor.

    Raises:
        DataError: `data` is missing, or has no labels.
        ConfigError: `out` holds this figure with other settings, or the device is not available.
        KeyboardInterrupt: A signal stopped it.
    """
    where = choose_device(device)
    path = require_data(data, "MNIST's train-images-idx3-ubyte[.gz], its labels beside it")
    labelled = read_labelled(path, Contract(size, size, 1))
    digest = hashlib.sha256(labelled.images.tobytes()).hexdigest()
    claim(out, figure="nice", size=size, steps=steps, seed=seed, data=digest, device=where.type)
    judge = _make_classifier(out / "classifier.safetensors", labelled, seed)

    images = split(labelled.images).train
    whitening = Whitening.of(images)
    truth = fit_truth(out, images, whitening, steps // 3, seed, where)
    exact = stage(out, "exact", lambda: {"x": draws(truth, TRAIN + 2 * HELD_OUT, seed, where)})["x"]
    train, held_out, others = np.split(exact, [TRAIN, TRAIN + HELD_OUT])
    config = recipe(size * size, steps, seed)
    state = _train_ours(out / "ours", config, truth, train, held_out, device)
    critic, wgan_generator = train_wgan_gp(out, config, train, where)

    log_likelihood = {
        "truth": mean_log_prob(truth, held_out), "ours": _log_likelihood(state, config, held_out),
        "wgan_gp": mean_log_prob(critic, held_out), "gaussian": _gaussian_log_prob(train, held_out),
    }  # fmt: skip
    made = {
        "truth": others,
        "ours": generate(config, state.generator_ema, image_seeds(seed, HELD_OUT)).cpu().numpy(),
        "wgan_gp": wgan_samples(wgan_generator, config, HELD_OUT, seed),
        "gaussian": _gaussian_samples(train, HELD_OUT, seed),
    }
    made = {name: whitening.pixels(torch.from_numpy(x)).numpy() for name, x in made.items()}
    real = whitening.pixels(torch.from_numpy(held_out)).numpy()
    metrics = {
        "size": size, "steps": steps, "seed": seed, "log_likelihood": log_likelihood,
        "gap": {name: log_likelihood["truth"] - value for name, value in log_likelihood.items() if name != "truth"},
        "gap_by_step": curve(out / "ours", config.sample_every, steps),
        "fd_classifier": _distances(judge, real, made, size),
    }  # fmt: skip
    write_results(out, _draw(metrics, made, size), metrics, {name: x[:1_000] for name, x in made.items()})
    return metrics


def _make_classifier(path: Path, labelled: Labelled, seed: int) -> Classifier:
    """Train a classifier for one epoch, unless an earlier call has written it to `path`."""
    if not path.exists():
        with progress("classifier, epochs", 1) as tick:
            judge, _ = train_classifier(labelled, 1, seed, lambda epoch, loss: tick(1))
        write_file(path, classifier_bytes(judge))
    judge, _ = read_classifier(str(path))
    return judge


def _train_ours(
    run: Path, config: TrainConfig, truth: Nice, train: NDArray[np.float32], held_out: NDArray[np.float32], device: str
) -> TrainState:
    """Train the energy model on `train` (N, D), and measure its gap to `truth` on the first 2,000 of `held_out`."""
    measure = partial(_measure, truth, config, held_out[:2_000])
    make = partial(_make_state, float(train.std()))
    return train_to_the_end(config, train, run, device, make, keep(run, measure))


def _make_state(std: float, config: TrainConfig, device: torch.device | str = "cpu") -> TrainState:
    """Make the training state of `config`, but with a flow as the energy network.

    Args:
        std: Standard deviation of the data.
    """
    state = make_state(config, device)
    schedule = make_schedule(config.network)
    spread = np.hypot(schedule.alpha_bar**0.5 * std, schedule.sigma)[:-1].tolist()
    flow = seeded(config.seed, lambda: Nice(config.network.data_shape[0], spread), torch.device(device))
    state.networks["energy_net"] = FlowEnergy(flow)
    begin_as_gaussian(config.network, state.networks.generator, state.networks.encoder)
    state.generator_ema.load_state_dict(state.networks.generator.state_dict())
    return dataclasses.replace(
        state,
        energy_net_ema=deepcopy(state.networks.energy_net).requires_grad_(False),
        optimizer_energy=torch.optim.Adam(flow.parameters(), lr=0.0, betas=config.adam_betas, fused=True),
    )


def _log_likelihood(state: TrainState, config: TrainConfig, x: NDArray[np.float32]) -> float:
    """Mean log-likelihood of the energy model in nats, for points x (N, D).

    The flow is a density of state 0, so x is scaled like state 0, and the log determinant of this scaling is added. The
    noise of state 0 is left out; its std is a twentieth of the true flow's.
    """
    assert isinstance(state.energy_net_ema, FlowEnergy)
    alpha_bar, dim = make_schedule(config.network).alpha_bar[0], config.network.data_shape[0]
    state_0: NDArray[np.float32] = x * np.float32(alpha_bar**0.5)
    return mean_log_prob(state.energy_net_ema.flow, state_0) + float(dim * math.log(alpha_bar) / 2)


def _measure(truth: Nice, config: TrainConfig, x: NDArray[np.float32], state: TrainState) -> dict[str, float]:
    return {"gap": mean_log_prob(truth, x) - _log_likelihood(state, config, x)}


def _gaussian_log_prob(train: NDArray[np.float32], x: NDArray[np.float32]) -> float:
    mean, covariance = train.mean(0, dtype=np.float64), np.cov(train.T.astype(np.float64))
    _, log_det = np.linalg.slogdet(covariance)
    square = ((x - mean) * np.linalg.solve(covariance, (x - mean).T).T).sum(1).mean()
    return float(-0.5 * (square + log_det + len(mean) * np.log(2 * np.pi)))


def _gaussian_samples(train: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    mean, covariance = train.mean(0, dtype=np.float64), np.cov(train.T.astype(np.float64))
    return np.random.default_rng(seed).multivariate_normal(mean, covariance, count, method="eigh").astype(np.float32)


def _pixels(x: NDArray[np.float32], size: int) -> NDArray[np.uint8]:
    images: NDArray[np.uint8] = to_pixels(torch.from_numpy(x).reshape(-1, 1, size, size)).numpy()
    return images


def _features(judge: Classifier, x: NDArray[np.float32], size: int) -> Tensor:
    return describe_images(judge, _pixels(x, size))[0]


def _distances(judge: Classifier, real: NDArray[np.float32], made: Arrays, size: int) -> dict[str, float]:
    """Fréchet distance of each set of samples to `real`; all are pixels (N, D)."""
    features = _features(judge, real, size)
    return {name: frechet_distance(features, _features(judge, x, size)) for name, x in made.items()}


def _draw(metrics: dict[str, Any], made: Arrays, size: int) -> Figure:
    figure = Figure(figsize=(16, 4), layout="constrained")
    *panels, right = figure.subplots(1, len(made) + 1)
    for axes, (name, x) in zip(panels, made.items(), strict=True):
        values = f"FD-classifier {metrics['fd_classifier'][name]:.2f}, {metrics['log_likelihood'][name]:.1f} nats"
        show_images(axes, _pixels(x[:64], size), 8, f"{name.replace('_', '-')}: {values}")
    by_step = metrics["gap_by_step"]
    right.plot(by_step["train_steps"], by_step["gap"], marker=".", label="ours")
    for i, name in enumerate(("wgan_gp", "gaussian")):
        right.axhline(metrics["gap"][name], linestyle="--", color=f"C{i + 1}", label=name.replace("_", "-"))
    right.set(xlabel="train steps", title="KL(true ‖ model), nats", yscale="log")
    right.legend(fontsize=8)
    return figure
