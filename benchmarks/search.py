"""Variants of a recipe, each one change away from it, trained at the same number of training FLOP and measured.

    python benchmarks/search.py --data fashion-mnist --test t10k-images-idx3-ubyte.gz --ood mnist=MNIST \\
        --classifier fashion-mnist --out runs/search [NAME ...]

With no name, all that have no result yet. A variant that is interrupted goes on where it stopped; several processes may
share the folder, each with its own names. In the end the table of all results, for docs/results.md.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ddaebm.model.files import write_file
from ddaebm.model.images.readers import read_images
from ddaebm.model.nets.diffusion import Diffusion
from ddaebm.model.runtime import OnnxEngine
from ddaebm.model.schedule import make_schedule
from ddaebm.training.classifier import read_classifier
from ddaebm.training.config import TrainConfig
from ddaebm.training.data import contract, load_data, split
from ddaebm.training.evaluate import ood_report
from ddaebm.training.export import open_model
from ddaebm.training.quality import quality_report
from ddaebm.training.recipes import make_config
from ddaebm.training.step import draw, make_state, train_step
from ddaebm.training.trainer import train

FEWER = 5  # every fifth image is enough for an AUROC
# What all of them share, but for what each one changes: a lazy R1, since that buys a quarter more steps.
BASE = {"gradient_penalty": "r1", "penalty_every": "16", "sample_every": "100000", "checkpoint_every": "250"}
VARIANTS: dict[str, dict[str, str]] = {
    "base": {},
    "base-seed-1": {"seed": "1"},
    # the objective
    "lambda-1": {"entropy_weight": "1.0"},
    "nll-0.1": {"likelihood_floor": "0.1"},
    "nll-0.01": {"likelihood_floor": "0.01"},
    "nll-0.001": {"likelihood_floor": "0.001"},
    "noise-at-zero": {"noise_at_zero": "true"},
    "siddm-1": {"denoise_weight": "1.0", "network.energy_denoises": "true"},
    "siddm-0.1": {"denoise_weight": "0.1", "network.energy_denoises": "true"},
    "relativistic": {"contrast": "relativistic"},
    "r3gan": {"contrast": "relativistic", "penalize_generated": "true"},
    # the penalty
    "penalty-each": {"penalty_every": "1"},
    "conditional": {"gradient_penalty": "conditional"},
    "gamma-0.1": {"gamma": "0.1"},
    # optimisation
    "batch-32": {"batch_size": "32"},
    "lr-4e-4": {"lr_generator": "4e-4", "lr_energy": "4e-4"},
    "constant-lr": {"lr_final": "2e-4"},
    "adam-beta2-0.99": {"adam_betas": "0.0,0.99"},
    "flip": {"flip": "true"},
    # the networks and the diffusion
    "patch-4": {"network.patch_size": "4", "network.widths": "96"},
    "widths-24-96": {"network.widths": "24,96"},
    "attention-7": {"network.attention": "7"},
    "fir": {"network.resample": "fir"},
    "latent-128": {"network.latent_dim": "128"},
    "T-2": {"network.num_steps": "2"},
    "beta-14": {"network.beta_max": "14.0"},
    # two or three changes, once the first of each was known to help
    "nll-0.01-batch-32": {"likelihood_floor": "0.01", "batch_size": "32"},
    "nll-0.01-batch-32-siddm-0.1": {
        "likelihood_floor": "0.01",
        "batch_size": "32",
        "denoise_weight": "0.1",
        "network.energy_denoises": "true",
    },
    "nll-0.01-penalty-4": {"likelihood_floor": "0.01", "penalty_every": "4"},
    "nll-0.01-lr-4e-4": {"likelihood_floor": "0.01", "lr_generator": "4e-4", "lr_energy": "4e-4"},
}


class CountFlop(TorchDispatchMode):
    """Counts as torch.utils.flop_counter does, whose own counter cannot follow a gradient of a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.flop += formula(*args, **(kwargs or {}), out_val=out)
        return out


def flop_per_step(config: TrainConfig, batch: int = 4) -> float:
    """Mean over the steps with and without a penalty, of the whole batch."""
    state, diffusion = make_state(config), Diffusion(make_schedule(config.network))
    x_clean, accelerator = torch.zeros(batch, *config.network.data_shape), Accelerator(cpu=True)
    flop = []
    for state.step in (0, 1):
        draws = draw(config, state.step, batch, torch.device("cpu"))
        with CountFlop() as counter:
            train_step(config, diffusion, state, x_clean, draws, accelerator)
        flop.append(counter.flop / batch)
    penalised, plain = flop
    return config.batch_size * (plain + (penalised - plain) / config.penalty_every)


def sampler_flop(config: TrainConfig) -> float:
    """One image: T calls of the generator."""
    network, generator = config.network, make_state(config).generator_ema
    with CountFlop() as counter:
        generator(torch.zeros(1, *network.data_shape), torch.zeros(1, network.latent_dim), torch.zeros(1).long())
    return network.num_steps * counter.flop


def run_variant(name: str, args: argparse.Namespace) -> None:
    result = args.out / name / "result.json"
    if result.exists():
        return
    config = make_config(args.recipe).override({**BASE, "data": args.data, **VARIANTS[name]})
    steps = round(args.budget / flop_per_step(config))
    config = config.override({"steps": str(steps)})
    print(f"{name}: {steps} steps", flush=True)
    train(config, split(load_data(config.data, config.network)).train, args.out / name, device="cpu")
    with open_model(str(args.out / name)) as bundle:
        runtime, form = OnnxEngine(bundle, threads=1), contract(config.network)
        test, unseen = read_images(args.test, form), split(read_images(args.data, form)).held_out
        others = {label: read_images(path, form)[::FEWER] for label, path in args.ood}
        report = ood_report(
            runtime.level_statistics, bundle.pixels, bundle.scorer, config.network.num_steps, test[::FEWER], others
        )
        samples = quality_report(runtime.sample, *read_classifier(args.classifier), test, unseen, args.samples)
    flop = sampler_flop(config)
    line = {"steps": steps, "sampler_flop": flop, "samples": samples, "ood": report["ood"]}
    write_file(result, json.dumps({"settings": VARIANTS[name], **line}, indent=2).encode())


def table(out: Path) -> str:
    """A Markdown row a result, the best first."""
    results = {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/result.json")}
    sets = sorted({label for result in results.values() for label in result["ood"]})
    rows = [
        "| run | what is changed | steps | GFLOP an image | FD-classifier | KID | precision | recall | "
        + " | ".join(f"AUROC {label}" for label in sets) + " |",
        "|---" * (8 + len(sets)) + "|",
    ]  # fmt: skip
    for name, result in sorted(results.items(), key=lambda item: item[1]["samples"]["fd_classifier"]):
        samples = result["samples"]
        changes = ", ".join(f"`{key}={value}`" for key, value in result["settings"].items()) or "–"
        aurocs = " | ".join(f"{result['ood'][label]['auroc']:.3f}" for label in sets)
        rows.append(
            f"| {name} | {changes} | {result['steps']} | {result['sampler_flop'] / 1e9:.2f}"
            f" | {samples['fd_classifier']:.2f} | {samples['kid']:.3f} | {samples['precision']:.3f}"
            f" | {samples['recall']:.3f} | {aurocs} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(VARIANTS))
    parser.add_argument("--recipe", default="fashion-mnist-paper")
    for option in ("--data", "--test", "--classifier"):
        parser.add_argument(option, required=True)
    parser.add_argument("--ood", action="append", default=[], type=lambda text: tuple(text.split("=", 1)))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=25e12, help="training FLOP")
    parser.add_argument("--samples", type=int, default=10_000, help="to measure")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for name in args.names or VARIANTS:
        run_variant(name, args)
    print(table(args.out))


if __name__ == "__main__":
    main()
