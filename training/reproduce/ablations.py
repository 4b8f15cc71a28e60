"""What each part of the loss is for: the 25 Gaussians with one thing changed at a time, over seeds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from model.noise import image_seeds
from training.config import TrainConfig
from training.data import GAUSSIAN_CENTRES, GAUSSIAN_STD, load_data, split
from training.metrics import grid_kl, mode_report
from training.recipes import make_config
from training.reproduce.figure import Arrays, choose_device, claim, stage, train_to_the_end, write_results
from training.reproduce.toy import GRID, energy_log_density, log_25_gaussians
from training.trainer import generate

# What is changed of Jeffrey's divergence with lambda = 1, an R1 penalty and the encoder's reconstruction.
VARIANTS: dict[str, dict[str, str]] = {
    "all parts, lambda 1": {},
    "lambda 0.1": {"entropy_weight": "0.1"},
    "no entropy bound": {"entropy_weight": "0"},
    "reverse KL alone": {"forward_weight": "0"},
    "no gradient penalty": {"gamma": "0"},
    "no encoder": {"reconstruct_from": "prior"},
    "DDGAN's loss": {
        "contrast": "non-saturating", "network.energy_sees_next": "true", "network.energy_curvature": "0",
        "entropy_weight": "0", "forward_weight": "0", "value_penalty": "0",
    },
}  # fmt: skip
SEEDS = 3
SAMPLES = 10_000
METRICS = ("modes", "within_4_sigma", "std_ratio", "smallest_mode", "kl_density")


def reproduce(out: Path, steps: int = 6_000, seed: int = 0, device: str = "auto") -> dict[str, Any]:
    """Train each variant from three seeds, `seed` and the next two, and write figure.png, metrics.json, arrays.npz.

    The setting is the recipe `toy` (docs/paper.md) at half its batch.

    Returns:
        The contents of metrics.json: for each of `variants`, by the names of `training.metrics.mode_report` and
        `kl_density` (KL(true ‖ exp(-E)), which a discriminator does not have), `mean` and `spread` (standard deviation)
        over the seeds, and `each`.

    Raises:
        ConfigError: `out` holds this figure of other settings, or no such device.
        NonFiniteLossError: a variant diverged.
        KeyboardInterrupt: it was asked to stop.
    """
    claim(out, figure="ablations", steps=steps, seed=seed, device=choose_device(device).type)
    base = make_config("toy").override({"steps": str(steps), "batch_size": "200", "sample_every": str(steps)})
    data = split(load_data(base.data, base.network)).train
    found: dict[str, list[Arrays]] = {name: [] for name in VARIANTS}
    for each in range(seed, seed + SEEDS):  # seed by seed, so that half of a figure compares all
        for name, changes in VARIANTS.items():
            config = base.override({**changes, "seed": str(each)})
            key = f"{'-'.join(''.join(c if c.isalnum() else ' ' for c in name).split())}-{each}"

            def trained(config: TrainConfig = config, key: str = key) -> Arrays:
                return _trained(config, data, out / "runs" / key, device)

            found[name].append(stage(out, key, trained))

    variants = {name: _over_seeds([_measure(result) for result in results]) for name, results in found.items()}
    metrics = {"steps": steps, "seeds": list(range(seed, seed + SEEDS)), "variants": variants}
    arrays = {f"{name}: {key}": np.stack([r[key] for r in rs]) for name, rs in found.items() for key in rs[0]}
    write_results(out, _draw(found, variants), metrics, arrays)
    return metrics


def _trained(config: TrainConfig, data: NDArray[np.float32], run: Path, device: str) -> Arrays:
    state = train_to_the_end(config, data, run, device)
    samples = generate(config, state.generator_ema, image_seeds(config.seed, SAMPLES)).cpu().numpy()
    if config.network.energy_sees_next:
        return {"samples": samples}
    return {"samples": samples, "log_density": energy_log_density(state.energy_net_ema, GRID)}


def _measure(result: Arrays) -> dict[str, float]:
    measures = mode_report(result["samples"], GAUSSIAN_CENTRES, GAUSSIAN_STD)
    if "log_density" in result:
        measures["kl_density"] = grid_kl(log_25_gaussians(GRID), result["log_density"])
    return {name: measures[name] for name in METRICS if name in measures}


def _over_seeds(measures: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    rows = {name: [float(measure[name]) for measure in measures] for name in measures[0]}
    return {
        name: {"mean": float(np.mean(row)), "spread": float(np.std(row, ddof=1)), "each": row}
        for name, row in rows.items()
    }


def _draw(found: Mapping[str, list[Arrays]], variants: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(2.6 * len(found), 5.6), layout="constrained")
    for (top, bottom), name in zip(figure.subplots(2, len(found)).T, found, strict=True):
        first = found[name][0]
        top.scatter(*first["samples"].T, s=1, alpha=0.3, linewidths=0)
        top.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal", xticks=[], yticks=[])
        top.set_title(name)
        if "log_density" in first:
            density = np.exp(first["log_density"] - first["log_density"].max())
            bottom.imshow(density, origin="lower", vmax=np.quantile(density, 0.995))
        bottom.set_axis_off()
        lines = [f"{key.replace('_', ' ')} {v['mean']:.3g} ± {v['spread']:.2g}" for key, v in variants[name].items()]
        bottom.set_title("\n".join(lines), fontsize=8)
    return figure
