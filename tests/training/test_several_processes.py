"""Two processes over gloo do what one does with the joint batch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.e2e.conftest import run_here

LAUNCHERS = {
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"],
    "accelerate": [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
        "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0",
    ],
}  # fmt: skip


def train(out: Path, launcher: str | None, batch_size: int, steps: int = 1) -> None:
    """With `launcher` in two processes, else in this one."""
    settings = [f"--set=batch_size={batch_size}", "--set=log_every=1", "--set=value_penalty=0.1"]
    command = ["train", "debug", "--resume", *settings, "--device=cpu", f"--steps={steps}", f"--out={out}"]
    if launcher is None:
        done = run_here(*command, cwd=out)
    else:
        words = [*LAUNCHERS[launcher], "-m", "ddaebm", *command]
        done = subprocess.run(words, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("one")
    train(run, None, 32)
    return run


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("two")
    train(run, "torchrun", 16)
    return run


@pytest.mark.parametrize("optimizer", ["energy", "generator"])
def test_two_processes_give_the_gradients_of_one(one: Path, two: Path, optimizer: str) -> None:
    # With beta_1 = 0 Adam's first moment is the last gradient itself.
    alone, shared = (
        torch.load(run / "checkpoints" / "step-0000001" / "optimizers.pt", weights_only=True)[optimizer]["state"]
        for run in (one, two)
    )
    assert alone.keys() == shared.keys()
    gradients = [torch.cat([state[key]["exp_avg"].flatten() for key in alone]) for state in (alone, shared)]
    error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert error < 1e-5


def test_only_one_of_them_writes(two: Path) -> None:
    assert len((two / "metrics.jsonl").read_text().splitlines()) == 1
    assert len(list((two / "tensorboard").iterdir())) == 1


def test_a_run_goes_on_with_another_number_of_processes(one: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(one, tmp_path / "run"))
    train(run, "accelerate", 16, steps=2)
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2]
