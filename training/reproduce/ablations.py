"""What each part of the loss is for: one thing changed at a time, over seeds."""

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
    Arrays,
    choose_device,
    claim,
    require_data,
    show_images,
    stage,
    train_to_the_end,
    write_results,
)
from ddaebm.training.reproduce.measures import measures

# What is changed of Jeffrey's divergence with an R1 penalty and the encoder's reconstruction.
VARIANTS: dict[str, dict[str, str]] = {
    "all parts": {},
    "lambda 0.1": {"entropy_weight": "0.1"},
    "no entropy bound": {"entropy_weight": "0"},
    "reverse KL alone": {"forward_weight": "0"},
    "no gradient penalty": {"gamma": "0"},
    "no penalty": {"gamma": "0", "value_penalty": "0"},
    "no encoder": {"reconstruct_from": "prior"},
    "DDGAN's loss": {
        "contrast": "non-saturating", "network.energy_sees_next": "true", "network.energy_curvature": "0",
        "entropy_weight": "0", "forward_weight": "0", "value_penalty": "0",
    },
}  # fmt: skip
SEEDS = 3


class Dataset(NamedTuple):
    recipe: str
    changes: Mapping[str, str]  # of the recipe, for all variants: smaller
    steps: int  # train steps of each run by default
    samples: int
    variants: tuple[str, ...]
    metrics: tuple[str, ...]


DATASETS = {
    "25-gaussians": Dataset("toy", {"batch_size": "200"}, 6_000, 10_000, tuple(VARIANTS),
                            ("modes", "within_4_sigma", "std_ratio", "smallest_mode", "kl_density")),
    # Without a penalty on values, and with a lambda of 0.1: the rest would change nothing.
    "fashion-mnist": Dataset("fashion-mnist", {"network.widths": "[16, 32]"}, 300, 1_000,
                             ("all parts", "no entropy bound", "reverse KL alone", "no gradient penalty", "no encoder"),
                             ("fd_classifier", "precision", "recall")),
}  # fmt: skip


def reproduce(
    out: Path, dataset: str = "25-gaussians", data: str | None = None, classifier: str = "fashion-mnist",
    steps: int | None = None, seed: int = 0, device: str = "auto",
) -> dict[str, Any]:  # fmt: skip
    """Train each variant from three seeds, `seed` and the next two, and write figure.png, metrics.json, arrays.npz.

    Args:
        data: for `fashion-mnist`, its training images.
        classifier: whose features images are measured in.
        steps: train steps of each run.

    Returns:
        The contents of metrics.json: for each of `variants`, by the names of `training.reproduce.measures`, `mean` and
        `spread` (standard deviation) over the seeds, and `each`.

    Raises:
        ConfigError: no such data set or device, or `out` holds this figure of other settings.
        DataError: no `data` where it is needed; no such classifier.
        NonFiniteLossError: a variant diverged.
        KeyboardInterrupt: it was asked to stop.
    """
    if dataset not in DATASETS:
        raise ConfigError(f"the figure ablations has the sets {', '.join(DATASETS)}, not {dataset!r}")
    chosen = DATASETS[dataset]
    total = steps or chosen.steps
    base = make_config(chosen.recipe).override({**chosen.changes, "steps": str(total), "sample_every": str(total)})
    if base.network.is_image and not base.data:
        base = base.override({"data": require_data(data, f"the training images of {dataset}")})
    parts = split(load_data(base.data, base.network))
    about: dict[str, Any] = {"dataset": dataset, "steps": total}
    if base.network.is_image:
        about["classifier"] = read_classifier(classifier)[1]
    held_out = hashlib.sha256(parts.held_out.tobytes()).hexdigest()
    claim(out, figure="ablations", **about, seed=seed, held_out=held_out, device=choose_device(device).type)

    found: dict[str, list[Arrays]] = {name: [] for name in chosen.variants}
    reports: dict[str, list[Mapping[str, float]]] = {name: [] for name in chosen.variants}
    for each in range(seed, seed + SEEDS):  # seed by seed, so that half of a figure compares all
        for name in chosen.variants:
            config = base.override({**VARIANTS[name], "seed": str(each)})
            of = measures(config, chosen.samples, parts, classifier)
            key = f"{'-'.join(''.join(c if c.isalnum() else ' ' for c in name).split())}-{each}"
            run = out / "runs" / key
            made = stage(
                out,
                key,
                lambda: of.look(train_to_the_end(config, parts.train, run, device)),  # noqa: B023  # now
            )
            found[name].append(made)
            reports[name].append(of.measure(made))

    variants = {name: _over_seeds(rows, chosen.metrics) for name, rows in reports.items()}
    metrics = about | {"seeds": list(range(seed, seed + SEEDS)), "variants": variants}
    arrays = {f"{name}: {key}": np.stack([r[key] for r in rs]) for name, rs in found.items() for key in rs[0]}
    write_results(out, _draw(found, variants), metrics, arrays)
    return metrics


def _over_seeds(reports: list[Mapping[str, float]], shown: tuple[str, ...]) -> dict[str, dict[str, Any]]:
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
