"""The numbers of one tiny run of each figure: what a figure computes must not change unknowingly.

python -m tests.training.reproduce.golden [FIGURE ...]     writes them anew
"""

import importlib
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from ddaebm.model.config import ModelConfig
from ddaebm.model.images.contract import Contract
from ddaebm.training.classifier import Classifier, write_classifier
from ddaebm.training.data import made_shapes
from ddaebm.training.recipes import make_config
from ddaebm.training.reproduce import FIGURES, reproduce
from tests.conftest import make_debug_bundle, make_debug_run

FOLDER = Path(__file__).parent / "golden"
TIMES = ("seconds", "steps_per_second")  # which no two machines share


def shapes(folder: Path) -> str:
    """PATH of the images that the debug bundle was trained on."""
    path = folder / "shapes.npy"
    np.save(path, made_shapes(make_config("debug").network))
    return str(path)


def unseen_shapes(folder: Path, count: int = 40) -> str:
    """PATH of shapes that it was not trained on: of every sort, mirrored so that none is the same."""
    path = folder / "unseen.npy"
    other = made_shapes(ModelConfig(data_shape=(1, 16, 16)), count=6_000)[-count:]
    np.save(path, np.rot90(other, axes=(1, 2)) // 2)
    return str(path)


def untrained_classifier(folder: Path) -> str:
    """PATH of a classifier whose features are those of its random beginning."""
    path = folder / "classifier.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        write_classifier(path, Classifier(Contract(16, 16, 1), ("disc", "square")))
    return str(path)


def _samples(folder: Path, bundle: Path) -> dict[str, Any]:
    return {
        "bundle": str(bundle), "data": shapes(folder), "classifier": untrained_classifier(folder), "images": 30,
    }  # fmt: skip


def digits(folder: Path) -> str:
    """PATH of 512 real digits as MNIST's files hold them, labelled bright or dark, for want of their labels."""
    with np.load(Path(__file__).parents[2] / "fixtures" / "mnist-test-512.npz") as archive:
        images = archive["images"]
    labels = (images.mean((1, 2, 3)) > 33).astype(np.uint8)
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(struct.pack(">4I", 0x803, *images.shape[:3]) + images.tobytes())
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, len(labels)) + labels.tobytes())
    return str(path)


# Constants of a figure that are smaller here.
SMALLER: dict[str, dict[str, Any]] = {
    "nice": {"TRAIN": 300, "HELD_OUT": 200},
    "steps": {"NUM_STEPS": (1, 2), "POINTS": 2},
    "ablations": {"SEEDS": 2},
}
RUNS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "toy": lambda folder, bundle: {"steps": 10},
    "nice": lambda folder, bundle: {"data": digits(folder), "size": 8, "steps": 9},
    "samples": _samples,
    "noise": lambda folder, bundle: {"bundle": str(bundle), "data": unseen_shapes(folder)},
    "steps": lambda folder, bundle: {"steps": 6, "images": 1_000},
    "ablations": lambda folder, bundle: {"steps": 4},
}


def numbers(figure: str, folder: Path, bundle: Path) -> dict[str, Any]:
    """metrics.json of the figure's tiny run, without what depends on the machine or on a file's hash."""
    module = importlib.import_module(f"ddaebm.training.reproduce.{FIGURES[figure]}")
    with patch.multiple(module, **SMALLER.get(figure, {"__doc__": module.__doc__})):
        metrics = reproduce(figure, folder / figure, RUNS[figure](folder, bundle) | {"device": "cpu"})
    return {k: v for k, v in metrics.items() if k not in (*TIMES, "digest", "classifier")}


def flat(metrics: Any, name: str = "") -> dict[str, float]:
    """The numbers among nested metrics by their path, for pytest.approx, which takes nothing else."""
    if not isinstance(metrics, (dict, list)):
        return {name: metrics} if isinstance(metrics, (int, float)) else {}
    items = metrics.items() if isinstance(metrics, dict) else enumerate(metrics)
    return {path: value for key, inner in items for path, value in flat(inner, f"{name}/{key}").items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with TemporaryDirectory() as made:
        chosen = sys.argv[1:] or list(RUNS)
        needs_bundle = {"samples", "noise"} & set(chosen)
        debug_bundle = (
            make_debug_bundle(make_debug_run(Path(made) / "run"), Path(made) / "bundle") if needs_bundle else Path()
        )
        for name in chosen:
            (FOLDER / f"{name}.json").write_text(json.dumps(numbers(name, Path(made), debug_bundle), indent=1) + "\n")
