"""Figure 5: sample quality during training, with one, two, four and eight denoising steps."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ddaebm.model.errors import ConfigError
from ddaebm.model.nets.device import choose_device
from ddaebm.training.classifier import read_classifier
from ddaebm.training.config import TrainConfig
from ddaebm.training.data import Splits, load_data, split
from ddaebm.training.recipes import make_config
from ddaebm.training.reproduce.figure import (
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
POINTS = 8  # measurements per run


class Dataset(NamedTuple):
    """A data set of this figure."""

    recipe: str
    steps: int  # default train steps for each T; they take minutes on a CPU
    samples: int  # default samples per measurement
    shown: tuple[str, ...]  # metrics in the plot


DATASETS = {
    "25-gaussians": Dataset("toy", 16_000, 10_000, ("within_4_sigma", "smallest_mode", "kl_density")),
    "fashion-mnist": Dataset("fashion-mnist", 400, 1_000, ("fd_classifier", "precision", "recall")),
}


def reproduce(
    out: Path, dataset: str = "25-gaussians", data: str | None = None, classifier: str = "fashion-mnist",
    images: int | None = None, steps: int | None = None, seed: int = 0, device: str = "auto",
) -> dict[str, Any]:  # fmt: skip
    """Train with each T and measure during training; write figure.png, metrics.json and arrays.npz.

    All T share the noise levels at both ends, the networks, the batches and the learning rates. A train step costs the
    same for all. A sample costs T generator calls.

    Args:
        data: The training images, for `fashion-mnist`.
        classifier: The classifier whose features `fd_classifier`, `precision` and `recall` use.
        images: Samples per measurement.
        steps: Train steps for each T.

    Returns:
        The contents of metrics.json. `num_steps` has for each T the list `train_steps` and a list per metric of the
        averaged networks. For points these are the metrics of `training.modes.mode_report` and `kl_density`, for
        images those of `evaluate`, against held-out images.

    Raises:
        ConfigError: There is no such data set or device, or `out` holds this figure with other settings.
        DataError: `data` is missing or unreadable, or there is no such classifier.
        KeyboardInterrupt: A signal stopped it.
    """
    if dataset not in DATASETS:
        raise ConfigError(f"the figure steps has the data sets {', '.join(DATASETS)}, not {dataset!r}")
    recipe, default_steps, default_samples, shown = DATASETS[dataset]
    total, count = steps or default_steps, images or default_samples
    every = max(total // POINTS, 1)
    base = make_config(recipe)
    if base.network.is_image and not base.data:
        base = base.override({"data": require_data(data, f"the training images of {dataset}")})
    base = base.override(
        {"steps": str(total), "seed": str(seed), "sample_every": str(every), "checkpoint_every": str(every)}
    )
    parts = split(load_data(base.data, base.network, base.max_pixels))
    about: dict[str, Any] = {"dataset": dataset, "steps": total, "samples": count, "seed": seed}
    if base.network.is_image:
        about["classifier"] = read_classifier(classifier)[1]
    held_out = hashlib.sha256(parts.held_out.tobytes()).hexdigest()
    claim(out, figure="steps", **about, held_out=held_out, device=choose_device(device).type)

    curves = {}
    for num_steps in NUM_STEPS:
        config = base.override({"network.num_steps": str(num_steps)})
        of = measures(config, count, parts, classifier)
        curves[str(num_steps)] = _train_and_measure(out / f"T-{num_steps}", config, parts, of, device)
    metrics = about | {"num_steps": curves}
    arrays = {f"T-{t}-{name}": np.array(row) for t, curve in curves.items() for name, row in curve.items()}
    write_results(out, _draw(curves, shown, about), metrics, arrays)
    return metrics


def _train_and_measure(
    folder: Path, config: TrainConfig, parts: Splits, of: OfPoints | OfImages, device: str
) -> dict[str, list[float]]:
    """Train in `folder` and return `train_steps` and each metric, measured every `config.sample_every` steps."""

    def measure(state: TrainState) -> Mapping[str, float]:
        return of.measure(of.look(state))

    train_to_the_end(config, parts.train, folder, device, observe=keep(folder, measure))
    return curve(folder, config.sample_every, config.steps)


def _draw(curves: Mapping[str, Mapping[str, list[float]]], shown: tuple[str, ...], about: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(4.5 * len(shown), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for num_steps, row in curves.items():
            axes.plot(row["train_steps"], row[name], marker=".", label=f"T = {num_steps}")
        axes.set(xlabel="train steps", title=name.replace("_", " "))
        axes.legend(fontsize=8)
    figure.suptitle(f"{about['dataset']}, seed {about['seed']}")
    return figure
