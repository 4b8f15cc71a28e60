"""Two processes over gloo do what one does with the joint batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch


def train(out: Path, processes: int, batch_size: int) -> "subprocess.CompletedProcess[str]":
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    options = [f"--set=batch_size={batch_size}", "--set=log_every=1", "--device=cpu", "--steps=1", f"--out={out}"]
    return subprocess.run(
        [*launch, "-m", "ddaebm", "train", "debug", *options], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("processes")
    for name, processes, batch_size in (("one", 1, 32), ("two", 2, 16)):
        done = train(folder / name, processes, batch_size)
        assert done.returncode == 0, done.stderr
    return folder / "one", folder / "two"


@pytest.mark.parametrize("optimizer", ["energy", "generator"])
def test_two_processes_give_the_gradients_of_one(runs: tuple[Path, Path], optimizer: str) -> None:
    # With beta_1 = 0 Adam's first moment is the last gradient itself.
    alone, shared = (
        torch.load(run / "checkpoints" / "step-0000001" / "optimizers.pt", weights_only=True)[optimizer]["state"]
        for run in runs
    )
    assert alone.keys() == shared.keys()
    gradients = [torch.cat([state[key]["exp_avg"].flatten() for key in alone]) for state in (alone, shared)]
    error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    # The generator's follows an update of the energy network, whose Adam turns rounding into signs.
    assert error < {"energy": 1e-5, "generator": 1e-3}[optimizer]


def test_only_one_of_them_writes(runs: tuple[Path, Path]) -> None:
    _, two = runs
    assert len((two / "metrics.jsonl").read_text().splitlines()) == 1
    assert len(list((two / "tensorboard").iterdir())) == 1
