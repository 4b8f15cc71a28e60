"""Ablations: train with one part of the method changed at a time, over several seeds."""

import hashlib
from collections.abc import Mapping
from functools import partial
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
    Arrays,
    claim,
    require_data,
    show_images,
    stage,
    train_to_the_end,
    write_results,
)
from ddaebm.training.reproduce.measures import OfImages, OfPoints, measures
from ddaebm.training.reproduce.variants import VARIANTS, Variant
from ddaebm.training.step import make_state

SEEDS = 3


class Dataset(NamedTuple):
    """A data set of this figure."""

    recipe: str
    changes: Mapping[str, str]  # settings that differ from the recipe for all variants, to make it smaller
    steps: int  # default train steps of each run
    samples: int  # samples that are measured
    variants: tuple[str, ...]
    metrics: tuple[str, ...]


DATASETS = {
    "25-gaussians": Dataset("toy", {"batch_size": "200"}, 6_000, 10_000, tuple(VARIANTS),
                            ("modes", "within_4_sigma", "std_ratio", "smallest_mode", "kl_density")),
    # This recipe has no value penalty and lambda = 0.1, so "no penalty" and "lambda 0.1" would change nothing.
    "fashion-mnist": Dataset("fashion-mnist", {"network.widths": "[16, 32]"}, 300, 1_000,
                             ("all parts", "no entropy bound", "reverse KL alone", "no gradient penalty", "no encoder"),
                             ("fd_classifier", "precision", "recall")),
}  # fmt: skip


def reproduce(
    out: Path, dataset: str = "25-gaussians", data: str | None = None, classifier: str = "fashion-mnist",
    steps: int | None = None, seed: int = 0, device: str = "auto",
) -> dict[str, Any]:  # fmt: skip
    """Train each variant with the seeds `seed`, `seed` + 1 and `seed` + 2; write figure.png, metrics.json, arrays.npz.

    Args:
        data: The training images, for `fashion-mnist`.
        classifier: The classifier whose features measure images.
        steps: Train steps of each run.

    Returns:
        The contents of metrics.json. `variants` has for each variant and metric of `training.reproduce.measures` the
        `mean` and `spread` (standard deviation) over the seeds, and the list `each`.

    Raises:
        ConfigError: There is no such data set or device, or `out` holds this figure with other settings.
        DataError: `data` is missing or unreadable, or there is no such classifier.
        NonFiniteLossError: A variant diverged.
        KeyboardInterrupt: A signal stopped it.
    """
    if dataset not in DATASETS:
        raise ConfigError(f"the figure ablations has the data sets {', '.join(DATASETS)}, not {dataset!r}")
    chosen = DATASETS[dataset]
    total = steps or chosen.steps
    base = make_config(chosen.recipe).override({**chosen.changes, "steps": str(total), "sample_every": str(total)})
    if base.network.is_image and not base.data:
        base = base.override({"data": require_data(data, f"the training images of {dataset}")})
    parts = split(load_data(base.data, base.network, base.max_pixels))
    about: dict[str, Any] = {"dataset": dataset, "steps": total}
    if base.network.is_image:
        about["classifier"] = read_classifier(classifier)[1]
    held_out = hashlib.sha256(parts.held_out.tobytes()).hexdigest()
    claim(out, figure="ablations", **about, seed=seed, held_out=held_out, device=choose_device(device).type)

    found: dict[str, list[Arrays]] = {name: [] for name in chosen.variants}
    reports: dict[str, list[Mapping[str, float]]] = {name: [] for name in chosen.variants}
    for each in range(seed, seed + SEEDS):  # seed by seed, so that an unfinished figure still compares all variants
        for name in chosen.variants:
            variant = VARIANTS[name]
            config = base.override({**variant.changes, "seed": str(each)})
            of = measures(config, chosen.samples, parts, classifier, variant.has_density)
            key = _file_name(name, each)
            made = stage(out, key, partial(_train_variant, variant, config, parts, of, out / "runs" / key, device))
            found[name].append(made)
            reports[name].append(of.measure(made))

    variants = {name: _over_seeds(rows, chosen.metrics) for name, rows in reports.items()}
    metrics = about | {"seeds": list(range(seed, seed + SEEDS)), "variants": variants}
    arrays = {f"{name}: {key}": np.stack([r[key] for r in rs]) for name, rs in found.items() for key in rs[0]}
    write_results(out, _draw(found, variants), metrics, arrays)
    return metrics


def _file_name(variant: str, seed: int) -> str:
    """A name for the files of one run, for example "no-encoder-0"."""
    return f"{'-'.join(''.join(c if c.isalnum() else ' ' for c in variant).split())}-{seed}"


def _train_variant(
    variant: Variant, config: TrainConfig, parts: Splits, of: OfPoints | OfImages, run: Path, device: str
) -> Arrays:
    """Train one variant in the folder `run` and return its samples and density."""
    # config.json does not name the method; this file does, so that a run is not resumed with another one.
    claim(run, loss=variant.make_loss.__name__)
    make = partial(make_state, make_networks=variant.make_networks)
    return of.look(train_to_the_end(config, parts.train, run, device, make, make_loss=variant.make_loss))


def _over_seeds(reports: list[Mapping[str, float]], shown: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Mean, spread and single values of each metric in `shown` that the variant has."""
    rows = {name: [float(report[name]) for report in reports] for name in shown if name in reports[0]}
    return {
        name: {"mean": float(np.mean(row)), "spread": float(np.std(row, ddof=1)), "each": row}
        for name, row in rows.items()
    }


def _draw(found: Mapping[str, list[Arrays]], variants: Mapping[str, Any]) -> Figure:
    rows = 1 + any("log_density" in runs[0] for runs in found.values())
    figure = Figure(figsize=(2.6 * len(found), 0.6 + 2.6 * rows), layout="constrained")
    for column, name in zip(figure.subplots(rows, len(found), squeeze=False).T, found, strict=True):
        top, first = column[0], found[name][0]
        if first["samples"].ndim == 2:
            top.scatter(*first["samples"].T, s=1, alpha=0.3, linewidths=0)
            top.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal", xticks=[], yticks=[])
        else:
            show_images(top, first["samples"][:64], 8, name)
        lines = [f"{key.replace('_', ' ')} {v['mean']:.3g} ± {v['spread']:.2g}" for key, v in variants[name].items()]
        top.set_title("\n".join([name, *lines]), fontsize=8)
        if "log_density" in first:
            density = np.exp(first["log_density"] - first["log_density"].max())
            column[1].imshow(density, origin="lower", vmax=np.quantile(density, 0.995))
        for axes in column[1:]:
            axes.set_axis_off()
    return figure
