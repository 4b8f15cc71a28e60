"""Figure 5: how good samples are while training goes on, with one, two, four and eight denoising steps."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ddaebm.model.errors import ConfigError
from ddaebm.training.classifier import read_classifier
from ddaebm.training.data import load_data, split
from ddaebm.training.recipes import make_config
from ddaebm.training.reproduce.figure import (
    choose_device,
    claim,
    curve,
    keep,
    require_data,
    train_to_the_end,
    write_results,
)
from ddaebm.training.reproduce.measures import OfImages, OfPoints, measures
from ddaebm.training.step import TrainState

NUM_STEPS = (1, 2, 4, 8)
POINTS = 8  # measurements along a run


class Dataset(NamedTuple):
    recipe: str
    steps: int  # train steps of each T by default: minutes on a CPU
    samples: int
    shown: tuple[str, ...]  # metrics that are drawn


DATASETS = {
    "25-gaussians": Dataset("toy", 16_000, 10_000, ("within_4_sigma", "smallest_mode", "kl_density")),
    "fashion-mnist": Dataset("fashion-mnist", 400, 1_000, ("fd_classifier", "precision", "recall")),
}


def reproduce(
    out: Path, dataset: str = "25-gaussians", data: str | None = None, classifier: str = "fashion-mnist",
    images: int | None = None, steps: int | None = None, seed: int = 0, device: str = "auto",
) -> dict[str, Any]:  # fmt: skip
    """Train for each T and measure on the way; write figure.png, metrics.json and arrays.npz.

    Each T has the same noise at both ends, the same networks, batches and learning rates; a train step costs the same,
    a sample T calls of the generator.

    Args:
        data: for `fashion-mnist`, its training images.
        classifier: whose features `fd_classifier`, `precision` and `recall` are taken in.
        images: samples a measurement.
        steps: train steps of each T.

    Returns:
        The contents of metrics.json: for each of `num_steps` the list `train_steps` and one of each metric: those of
        `training.modes.mode_report` and `kl_density` for points, of the averaged networks, and for images those of
        `evaluate`, against held-out images.

    Raises:
        ConfigError: no such data set or device, or `out` holds this figure of other settings.
        DataError: no `data` where it is needed; no such classifier.
        KeyboardInterrupt: it was asked to stop.
    """
    if dataset not in DATASETS:
        raise ConfigError(f"the figure steps has the sets {', '.join(DATASETS)}, not {dataset!r}")
    recipe, default_steps, default_samples, shown = DATASETS[dataset]
    total, count = steps or default_steps, images or default_samples
    every = max(total // POINTS, 1)
    base = make_config(recipe)
    if base.network.is_image and not base.data:
        base = base.override({"data": require_data(data, f"the training images of {dataset}")})
    base = base.override(
        {"steps": str(total), "seed": str(seed), "sample_every": str(every), "checkpoint_every": str(every)}
    )
    parts = split(load_data(base.data, base.network))
    about: dict[str, Any] = {"dataset": dataset, "steps": total, "samples": count, "seed": seed}
    if base.network.is_image:
        about["classifier"] = read_classifier(classifier)[1]
    held_out = hashlib.sha256(parts.held_out.tobytes()).hexdigest()
    claim(out, figure="steps", **about, held_out=held_out, device=choose_device(device).type)

    curves = {}
    for num_steps in NUM_STEPS:
        config = base.override({"network.num_steps": str(num_steps)})
        folder = out / f"T-{num_steps}"
        of = measures(config, count, parts, classifier)

        def measure(state: TrainState, of: OfPoints | OfImages = of) -> Mapping[str, float]:
            return of.measure(of.look(state))

        train_to_the_end(config, parts.train, folder, device, observe=keep(folder, measure))
        curves[str(num_steps)] = curve(folder, every, total)
    metrics = about | {"num_steps": curves}
    arrays = {f"T-{t}-{name}": np.array(row) for t, curve in curves.items() for name, row in curve.items()}
    write_results(out, _draw(curves, shown, about), metrics, arrays)
    return metrics


def _draw(curves: Mapping[str, Mapping[str, list[float]]], shown: tuple[str, ...], about: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(4.5 * len(shown), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for num_steps, row in curves.items():
            axes.plot(row["train_steps"], row[name], marker=".", label=f"T = {num_steps}")
        axes.set(xlabel="train steps", title=name.replace("_", " "))
        axes.legend(fontsize=8)
    figure.suptitle(f"{about['dataset']}, seed {about['seed']}")
    return figure
