"""Figure 4: energies at state 0 of real images, of generated images, and of real images with added noise."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ddaebm.model.bundle import Bundle, find_bundle, load_bundle
from ddaebm.model.errors import DataError
from ddaebm.model.images.arrays import fingerprints
from ddaebm.model.images.readers import read_images
from ddaebm.model.nets.device import choose_device
from ddaebm.model.nets.networks import EnergyNet
from ddaebm.model.nets.weights import load_networks
from ddaebm.model.noise import random_word
from ddaebm.model.ood.power import auroc
from ddaebm.model.progress import progress
from ddaebm.model.schedule import make_schedule
from ddaebm.training.data import to_tensor
from ddaebm.training.reproduce.figure import (
    Arrays,
    claim,
    draw_images,
    require_data,
    stage,
    write_results,
)

BATCH = 100
STDS = (0.0, 0.01, 0.1, 0.5)  # std of the Gaussian noise for pixels in [-1, 1]; 0 means the real images
GENERATED = "generated"


def reproduce(
    out: Path, bundle: str = "fashion-mnist", data: str | None = None, images: int = 10_000, seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:  # fmt: skip
    """Write figure.png, metrics.json and arrays.npz for log-likelihoods up to a constant, -E(x_0, 0).

    x_0 is state 0, as in training: the image scaled by sqrt(alpha_bar_0), plus the noise of state 0. The Gaussian noise
    is added to the image before scaling, without clipping. It is drawn for each image independently of the noise of
    state 0, and is the same for every std up to the scale.

    Args:
        data: PATH of real images that the networks were not trained on.
        images: Number of real images to use, from the start of `data`, and of generated images.

    Returns:
        The contents of metrics.json. `auroc`: the probability that a real image has a higher log-likelihood than a
        generated image, or than an image with noise of each std. `less_likely_than_itself`: the share of images that
        are less likely with noise than without. `log_likelihood`: mean and standard deviation of each group.

    Raises:
        DataError: `data` is missing, or contains training images.
        ConfigError: `out` holds this figure with other settings, or the device is not available.
    """
    loaded = load_bundle(find_bundle(bundle))
    given = require_data(data, f"test images, which {bundle} was not trained on")
    real = _unseen(loaded, given, read_images(given, loaded.contract))[:images]
    chosen = choose_device(device)
    about = {"digest": loaded.digest, "images": len(real), "seed": seed}
    claim(out, figure="noise", **about, data=hashlib.sha256(real.tobytes()).hexdigest(), device=chosen.type)
    generator, energy_net = load_networks(loaded, chosen)

    made = stage(out, "samples", lambda: {"samples": draw_images(loaded, generator, len(real), seed)})["samples"]
    found = {}
    for name, std, pictures in [(GENERATED, 0.0, made), *((f"{std:g}", std, real) for std in STDS)]:

        def log_likelihood(std: float = std, pictures: NDArray[np.uint8] = pictures, name: str = name) -> Arrays:
            return {"log_likelihood": _log_likelihood(loaded, energy_net, pictures, std, seed, name, chosen)}

        found[name] = stage(out, f"log-likelihood-{name}", log_likelihood)["log_likelihood"]
    clean = found.pop("0")

    metrics: dict[str, Any] = {"bundle": loaded.name, **about, "sigma_0": float(make_schedule(loaded.config).sigma[0])}
    aurocs = metrics["auroc"] = {name: auroc(-clean, -values) for name, values in found.items()}
    metrics["less_likely_than_itself"] = {
        name: float((values < clean).mean()) for name, values in found.items() if name != GENERATED
    }
    everything = {"real": clean, **found}
    metrics["log_likelihood"] = {
        name: {"mean": float(values.mean()), "std": float(values.std())} for name, values in everything.items()
    }
    figure = _draw(loaded, everything, aurocs)
    write_results(out, figure, metrics, {"samples": made, **{f"log_likelihood_{n}": v for n, v in everything.items()}})
    return metrics


def _unseen(bundle: Bundle, data: str, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Remove training images from `images`. A few are expected, because test sets can contain duplicates.

    Raises:
        DataError: More than 1 % of the images were used for training.
    """
    known = np.isin(fingerprints(images), bundle.fingerprints())
    if known.mean() > 0.01:
        raise DataError(
            f"{data}: {known.sum()} of {len(images)} images were used for training, which raises their likelihood;"
            " give test images"
        )
    return images[~known]


@torch.no_grad()
def _log_likelihood(
    bundle: Bundle, energy_net: EnergyNet, images: NDArray[np.uint8], std: float, seed: int, name: str,
    device: torch.device,
) -> NDArray[np.float32]:  # fmt: skip
    """-E(x_0, 0), (N,), of images (N, H, W, C) with Gaussian noise of standard deviation `std`."""
    schedule, values = make_schedule(bundle.config), []
    rng = torch.Generator().manual_seed(random_word(seed, 0))
    with progress(f"log-likelihood, {name}", len(images)) as tick:
        for start in range(0, len(images), BATCH):
            x = to_tensor(images[start : start + BATCH])
            noise, eps = torch.randn((2, *x.shape), generator=rng)
            x_0 = float(schedule.alpha_bar[0] ** 0.5) * (x + std * noise) + float(schedule.sigma[0]) * eps
            k = torch.zeros(len(x), dtype=torch.long, device=device)
            values.append(-energy_net(x_0.to(device), k).cpu().numpy())
            tick(len(x))
    return np.concatenate(values)


def _draw(bundle: Bundle, log_likelihood: Arrays, aurocs: dict[str, float]) -> Figure:
    figure = Figure(figsize=(14, 3.6), layout="constrained")
    real = log_likelihood["real"]
    for axes, (name, area) in zip(figure.subplots(1, len(aurocs)), aurocs.items(), strict=True):
        other = log_likelihood[name]
        label = name if name == GENERATED else f"real + noise of std {name}"
        # Cut off far tails, which would make the histograms very narrow.
        low, high = np.quantile(np.concatenate([real, other]), [0.005, 0.995])
        for values, title in ((real, "real"), (other, label)):
            axes.hist(values, bins=np.linspace(low, high, 80).tolist(), density=True, alpha=0.6, label=title)
        axes.set(title=f"AUROC {area:.3f}", xlabel="-E(x_0, 0), nats up to a constant", yticks=[])
        axes.legend(fontsize=8)
    figure.suptitle(f"{bundle.name} {bundle.digest[:12]}, {len(real):,} images each")
    return figure
