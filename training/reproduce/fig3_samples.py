"""Figure 3: samples of a bundle, their intermediate steps, and whether they are copies of training images."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from ddaebm.model.bundle import Bundle, find_bundle, load_bundle
from ddaebm.model.errors import DataError
from ddaebm.model.images.readers import read_images
from ddaebm.model.nets.device import choose_device
from ddaebm.model.nets.graphs import to_pixels
from ddaebm.model.nets.networks import Generator
from ddaebm.model.nets.weights import load_networks
from ddaebm.model.noise import image_seeds
from ddaebm.model.ood.power import auroc
from ddaebm.model.progress import progress
from ddaebm.model.sampling import Noise, draw_noise
from ddaebm.training.classifier import Classifier, describe_images, read_classifier
from ddaebm.training.data import Splits, split
from ddaebm.training.reproduce.figure import (
    Arrays,
    claim,
    draw_images,
    require_data,
    show_images,
    stage,
    watched_sample,
    write_results,
)

BATCH = 100
GRID, ROWS, NEAREST, POINTS = (
    64,
    8,
    4,
    9,
)  # images in the grid; rows of the other panels; neighbours; points on a path in z


def reproduce(
    out: Path, bundle: str = "fashion-mnist", data: str | None = None, classifier: str | None = None,
    images: int = 1_000, seed: int = 0, device: str = "auto",
) -> dict[str, Any]:  # fmt: skip
    """Write figure.png, metrics.json and arrays.npz for the samples of a bundle and their nearest training images.

    Args:
        data: PATH of the images that the bundle was trained on.
        classifier: Path or name of the classifier for distances in feature space. The default is the shipped one with
            the name of the bundle.
        images: Number of samples, and the largest number of held-out images, that are compared with training images.

    Returns:
        The contents of metrics.json. `pixels` (Euclidean distance, pixels in [-1, 1]) and `features` describe distances
        to the nearest training image: `samples` and `held_out` with the minimum, the 1 % quantile and the median; and
        `samples_nearer`, the probability that a sample is nearer than a held-out image. Memorised images would give
        small distances and a probability near 1. Samples as new as the held-out images give 0.5.

    Raises:
        DataError: `data` is missing or is not the training data of the bundle, or the classifier cannot be read.
        ConfigError: `out` holds this figure with other settings, or the device is not available.
    """
    loaded = load_bundle(find_bundle(bundle))
    parts = _training_parts(loaded, require_data(data, f"the images that {bundle} was trained on"))
    judge, sha256 = read_classifier(classifier or loaded.name)
    chosen = choose_device(device)
    about = {"digest": loaded.digest, "classifier": sha256, "images": images, "seed": seed}
    claim(out, figure="samples", **about, device=chosen.type)
    generator, _ = load_networks(loaded, chosen)

    made = stage(out, "samples", lambda: _sampled(loaded, generator, images, seed, chosen))
    held_out = parts.held_out[:images]
    spaces: dict[str, Arrays] = {}
    for space in ("pixels", "features"):

        def neighbours(space: str = space) -> Arrays:
            sets = (parts.train, made["samples"], held_out)
            points = [_flat(s) if space == "pixels" else _features(judge, s) for s in sets]
            (near, places), (others, _) = (_nearest(p, points[0], NEAREST, space) for p in points[1:])
            return {"samples": near, "places": places, "held_out": others}

        spaces[space] = stage(out, f"neighbours-{space}", neighbours)

    metrics = {"bundle": loaded.name, **about, "held_out": len(held_out), "training_images": len(parts.train)}
    metrics |= {space: _compare(found["samples"][:, 0], found["held_out"][:, 0]) for space, found in spaces.items()}
    arrays = dict(made) | {f"{space}_{name}": a for space, found in spaces.items() for name, a in found.items()}
    write_results(out, _draw(loaded, parts.train, made, spaces), metrics, arrays)
    return metrics


def _training_parts(bundle: Bundle, data: str) -> Splits:
    parts = split(read_images(data, bundle.native))
    if hashlib.sha256(parts.train.tobytes()).hexdigest() != bundle.splits["train"]["sha256"]:
        raise DataError(
            f"{data}: not the images that {bundle.name} was trained on ({bundle.splits['train']['count']} training"
            " images, and a quarter as many held out); give the PATH that was given to `ddaebm train`"
        )
    return parts


def _sampled(bundle: Bundle, generator: Generator, images: int, seed: int, device: torch.device) -> Arrays:
    """Draw the samples, the intermediate states of the first `ROWS`, and interpolations in z with other noise fixed."""
    made = draw_images(bundle, generator, max(images, GRID), seed)
    seeds = torch.from_numpy(image_seeds(seed, 2 * ROWS)).to(device)
    noise = draw_noise(bundle.config, seeds)
    passed = watched_sample(bundle, generator, Noise(*(part[:ROWS] for part in noise)))
    # The generator normalises z, so the interpolation follows a great circle.
    start, end = noise.z[:ROWS, None], noise.z[ROWS:, None]  # (R, 1, T, nz)
    turn = torch.linspace(0, torch.pi / 2, POINTS, device=device)[:, None, None]
    z = (turn.cos() * start + turn.sin() * end).flatten(0, 1)
    x_T, eps = (part[:ROWS].repeat_interleave(POINTS, 0) for part in (noise.x_T, noise.noise))
    between = watched_sample(bundle, generator, Noise(x_T, z, eps)).x_0
    return {
        "samples": made,
        "x_tp1": passed.x_tp1.cpu().numpy(),
        "x0_hat": passed.x0_hat.cpu().numpy(),
        "interpolation": to_pixels(between).cpu().numpy(),
    }


def _flat(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images.reshape(len(images), -1)).float() / 127.5 - 1


def _features(judge: Classifier, images: NDArray[np.uint8]) -> Tensor:
    blocks = []
    with progress("features", len(images)) as tick:
        for start in range(0, len(images), 1_000):
            blocks.append(describe_images(judge, images[start : start + 1_000])[0])
            tick(len(blocks[-1]))
    return torch.cat(blocks)


def _nearest(points: Tensor, among: Tensor, count: int, space: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """For each of `points` (N, D), the `count` nearest rows of `among`: ascending distances and indices, (N, count)."""
    distances, places = [], []
    with progress(f"neighbours in {space}", len(points)) as tick:
        for block in torch.split(points, BATCH):
            found = torch.cdist(block, among).topk(count, largest=False)
            distances.append(found.values)
            places.append(found.indices)
            tick(len(block))
    return torch.cat(distances).numpy(), torch.cat(places).numpy()


def _compare(samples: NDArray[np.float32], held_out: NDArray[np.float32]) -> dict[str, Any]:
    def summary(distances: NDArray[np.float32]) -> dict[str, float]:
        return {
            "minimum": float(distances.min()),
            "quantile_0.01": float(np.quantile(distances, 0.01)),
            "median": float(np.median(distances)),
        }

    return {
        "samples": summary(samples),
        "held_out": summary(held_out),
        "samples_nearer": auroc(samples, held_out),
    }


def _draw(bundle: Bundle, train: NDArray[np.uint8], made: Arrays, spaces: Mapping[str, Arrays]) -> Figure:
    figure = Figure(figsize=(15, 10), layout="constrained")
    (grid, steps, between), (pixels, features, right) = figure.subplots(2, 3)
    show_images(grid, made["samples"][:GRID], 8, "samples")

    # x_T, then for each transition the predicted image and the resulting state.
    x_tp1, x0_hat = (torch.from_numpy(made[name]) for name in ("x_tp1", "x0_hat"))
    num_steps = bundle.config.num_steps
    columns = [x_tp1[:, -1]]
    for k in reversed(range(num_steps)):
        columns += [x0_hat[:, k]] + ([x_tp1[:, k - 1]] if k else [])
    strip = to_pixels(torch.stack(columns, 1).flatten(0, 1)).numpy()
    names = ", ".join([f"x_{num_steps}"] + [f"x0_hat, x_{k}" for k in reversed(range(1, num_steps))] + ["x0_hat"])
    show_images(steps, strip, len(columns), f"the way: {names}")
    show_images(between, made["interpolation"], POINTS, "from one z to another, all other noise fixed")
    for axes, (space, found) in zip((pixels, features), spaces.items(), strict=True):
        rows = [np.concatenate([made["samples"][i : i + 1], train[found["places"][i]]]) for i in range(ROWS)]
        show_images(axes, np.concatenate(rows), 1 + NEAREST, f"a sample, and its nearest training images in {space}")
    for i, (space, found) in enumerate(spaces.items()):
        scale = np.median(found["held_out"][:, 0])
        largest = max(found[name][:, 0].max() for name in ("samples", "held_out")) / scale
        bins = np.linspace(0, largest, 61).tolist()
        for name, style in (("samples", "-"), ("held_out", "--")):
            label = f"{space}, {name.replace('_', '-')}"
            right.hist(found[name][:, 0] / scale, bins=bins, density=True, histtype="step", linestyle=style,
                       color=f"C{i}", label=label)  # fmt: skip
    right.set(xlabel="distance to the nearest training image, over the held-out median", yticks=[])
    right.legend(fontsize=8)
    figure.suptitle(f"{bundle.name} {bundle.digest[:12]}")
    return figure
