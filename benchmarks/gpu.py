"""Serving on a GPU: images a second of every backend that is there, and how far each is from ONNX Runtime on the CPU.

    make gpu-check
    python benchmarks/gpu.py [--bundle fashion-mnist] [--seconds 2] [--rounds 3] [--doc docs/performance.md]

All backends run on this machine in one run, alternated round by round; the medians over the rounds are
written between the two marks in --doc. A backend that is further from the CPU than `LIMITS` fails the check,
and nothing is written. `--device cpu` tries the script itself where there is no GPU, and writes only with --doc.
"""

import argparse
import importlib.metadata
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.pages import write_section
from ddaebm.model.bundle import Bundle, find_bundle, load_bundle
from ddaebm.model.engine import Engine
from ddaebm.model.errors import ConfigError
from ddaebm.model.noise import image_seeds
from ddaebm.model.runtime import OnnxEngine

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- gpu-check:begin -->", "<!-- gpu-check:end -->"
LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "tensorrt-cu13", "torch", "numpy")


class Distance(NamedTuple):
    """Largest differences between an engine and the reference."""

    grey_levels: int
    energy: float  # relative
    p_value: float


LIMITS = Distance(1, 1e-3, 0.01)


class Result(NamedTuple):
    ready_seconds: float  # to load and warm up
    distance: Distance
    sampling: list[float]  # images a second at each batch size
    scoring: list[float]


def make_engines(bundle: Bundle, device: str, max_batch: int) -> tuple[dict[str, Engine], dict[str, str]]:
    """The available engines by name, and the reason for each one that is missing."""

    def make_torch(cuda_graphs: bool) -> Engine:
        from ddaebm.model.nets.torch_engine import TorchEngine

        return TorchEngine(bundle, device, max_batch=max_batch, cuda_graphs=cuda_graphs)

    makers: dict[str, Callable[[], Engine]] = {"ONNX Runtime": lambda: OnnxEngine(bundle, device)}
    if device == "cuda":
        makers["ONNX Runtime, TensorRT"] = lambda: OnnxEngine(bundle, "tensorrt")
        makers["torch, CUDA graphs"] = lambda: make_torch(True)
    makers["torch"] = lambda: make_torch(False)
    engines: dict[str, Engine] = {}
    missing: dict[str, str] = {}
    for name, make in makers.items():
        try:
            engines[name] = make()
        except (ConfigError, ModuleNotFoundError) as error:
            missing[name] = str(error)
    return engines, missing


def distance(engine: Engine, reference: Engine, max_batch: int) -> Distance:
    """Measured on the bundle's own samples and on noise, the two extremes of what users score."""
    parts = np.split(image_seeds(7, max_batch + 6), [1, 6])  # a batch of one, one to be padded, the largest
    ours, samples = (np.concatenate([maker.sample(part) for part in parts]) for maker in (engine, reference))
    noise = np.random.default_rng(0).integers(256, size=(50, *samples.shape[1:]), dtype=np.uint8)
    images = np.concatenate([samples, noise])
    grey_levels, energy, p_value = int(np.abs(ours.astype(int) - samples).max()), 0.0, 0.0
    for start in range(0, len(images), max_batch):
        actual, wanted = (scorer.score(images[start : start + max_batch]) for scorer in (engine, reference))
        # np.maximum, since max would lose a NaN
        energy = float(np.maximum(energy, np.abs(actual.energies / wanted.energies - 1).max()))
        p_value = float(np.maximum(p_value, np.abs(actual.p_value - wanted.p_value).max()))
    return Distance(grey_levels, energy, p_value)


def too_far(found: Distance) -> list[str]:
    """Names and values of `found` above their limits. A NaN counts as above."""
    pairs = zip(Distance._fields, found, LIMITS, strict=True)
    return [f"{name} {value:.2g} (limit {limit:g})" for name, value, limit in pairs if not value <= limit]


def speed(call: Callable[[], object], batch: int, seconds: float) -> float:
    """Images per second, over at least one call."""
    began, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() < began + seconds:
        call()
        calls += 1
    return batch * calls / (time.perf_counter() - began)


def measure(
    engines: dict[str, Engine], batches: list[int], seconds: float, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Images per second by engine and operation, one number for each batch size."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for _ in range(rounds):
        for batch in batches:
            for name, engine in engines.items():
                seeds = image_seeds(0, batch)
                images = engine.sample(seeds)
                for operation, rows in (("sample", seeds), ("score", images)):
                    call = getattr(engine, operation)
                    rate = speed(partial(call, rows), batch, seconds)
                    found.setdefault((name, operation, batch), []).append(rate)
    return {
        name: {op: [statistics.median(found[name, op, batch]) for batch in batches] for op in ("sample", "score")}
        for name in engines
    }


def check(options: argparse.Namespace) -> tuple[dict[str, Result], dict[str, str], list[str]]:
    """Results by engine, reasons for missing engines, and differences that are too large."""
    bundle, largest = load_bundle(find_bundle(options.bundle)), max(options.batches)
    reference = OnnxEngine(bundle, "cpu")
    engines, missing = make_engines(bundle, options.device, largest)
    ready, distances, faults = {}, {}, []
    for name, engine in engines.items():
        began = time.perf_counter()
        engine.warm_up(largest)
        ready[name] = time.perf_counter() - began
        distances[name] = distance(engine, reference, largest)
        faults += [f"{name}: {fault}" for fault in too_far(distances[name])]
    speeds = {} if faults else measure(engines, options.batches, options.seconds, options.rounds)
    results = {name: Result(ready[name], distances[name], *rates.values()) for name, rates in speeds.items()}
    return results, missing, faults


def report(results: dict[str, Result], missing: dict[str, str], batches: list[int], machine: str) -> str:
    """The section of the documentation."""
    heads = [f"{'sample' if sampling else 'score'} {batch}" for sampling in (True, False) for batch in batches]
    lines = [
        f"{machine}. Images a second with noise and copies included, at each batch size.",
        "",
        f"| backend | warm after | {' | '.join(heads)} | grey levels off | energies off | p-values off |",
        "|---" * (len(heads) + 5) + "|",
    ]
    for name, result in results.items():
        rates = " | ".join(f"{rate:,.0f}" for rate in (*result.sampling, *result.scoring))
        off = result.distance
        lines.append(
            f"| {name} | {result.ready_seconds:.1f} s | {rates} |"
            f" {off.grey_levels} | {off.energy:.1e} | {off.p_value:.1e} |"
        )
    lines += ["", *(f"Not run: {name} ({reason})." for name, reason in missing.items())]
    return "\n".join(lines).rstrip()


def describe(device: str) -> str:
    """The card with its driver, or the processor, and the libraries."""
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        try:
            listed = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
        except (OSError, subprocess.CalledProcessError):
            listed = []
        if not listed:
            raise SystemExit("gpu-check: needs an NVIDIA GPU and its driver; nvidia-smi finds none")
        card, _, driver = listed[0].partition(", ")
        machine = f"{card}, driver {driver}"
    else:
        machine = f"The CPU ({platform.processor() or platform.machine()}), to try the script"
    installed = {distribution.name: distribution.version for distribution in importlib.metadata.distributions()}
    versions = [f"{name} {installed[name]}" for name in LIBRARIES if name in installed]
    return f"{machine}; {', '.join(versions)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="fashion-mnist")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--doc", type=Path, help="docs/performance.md on a GPU")
    options = parser.parse_args()

    machine = describe(options.device)
    results, missing, faults = check(options)
    for name, reason in missing.items():
        print(f"gpu-check: not run: {name}: {reason}", file=sys.stderr)
    if faults:
        raise SystemExit("gpu-check: too far from ONNX Runtime on the CPU: " + "; ".join(faults))
    if not results:
        raise SystemExit("gpu-check: no backend could be run")
    arguments = f"--bundle {options.bundle} --seconds {options.seconds:g} --rounds {options.rounds}"
    section = f"    python benchmarks/gpu.py {arguments}\n\n{report(results, missing, options.batches, machine)}"
    print(section)
    doc = options.doc or (ROOT / "docs" / "performance.md" if options.device == "cuda" else None)
    if doc:
        write_section(doc, BEGIN, END, section)


if __name__ == "__main__":
    main()
