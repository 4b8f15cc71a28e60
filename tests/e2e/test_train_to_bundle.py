"""From nothing to a bundle by the commands alone: train, resume, export, evaluate, sample."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ddaebm.model.images.encode import encode_png
from tests.e2e.conftest import COMMAND, PATIENCE, Cli, check_failure, environment, run_here

TINY = ["network.num_steps=2", "network.widths=8", "network.norm_groups=2", "batch_size=4", "checkpoint_every=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A run folder of two steps, made by `ddaebm train`."""
    overrides = [part for assignment in TINY for part in ("--set", assignment)]
    done = run_here("train", "debug", "--out", "run", "--steps", 2, "--seed", 3, *overrides, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "step 2" in done.stdout
    assert "ddaebm export run" in done.stdout
    return folder / "run"


@pytest.fixture(scope="module")
def bundle(run: Path) -> Path:
    """A bundle, made by `ddaebm export`."""
    done = run_here("export", "run", "--out", "bundle", "--name", "mine", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert "ddaebm serve --bundle bundle" in done.stdout
    return run.parent / "bundle"


def test_the_run_holds_its_settings(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    assert (config["recipe"], config["steps"], config["seed"], config["batch_size"]) == ("debug", 2, 3, 4)
    assert (config["network"]["num_steps"], config["network"]["widths"]) == (2, [8])


def test_a_run_is_not_trained_over(call: Cli, run: Path) -> None:
    check_failure(call("train", "debug", "--out", run), 2, "run", "--resume")


def test_a_run_is_not_resumed_as_another_recipe(call: Cli, run: Path) -> None:
    check_failure(call("train", "toy", "--out", run, "--resume"), 2, "debug", "toy")


def test_a_bundle_is_trained_further_and_resumed_without_it(call: Cli, bundle: Path, tmp_path: Path) -> None:
    network = [part for assignment in TINY for part in ("--set", assignment)]
    first = call("train", "debug", "--start", bundle, "--out", tmp_path / "run", "--steps", 1, *network)
    assert first.returncode == 0, first.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["start"] == hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
    assert config["encoder_steps"] == 500
    again = call("train", "debug", "--out", tmp_path / "run", "--resume", "--steps", 2)
    assert again.returncode == 0, again.stderr
    wrong = call("train", "debug", "--start", bundle, "--out", tmp_path / "other", "--steps", 1)
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1].startswith("ddaebm: --start mine")
    assert "network.widths (8, 16) for (8,)" in wrong.stderr
    assert not (tmp_path / "other").exists()


def test_resuming_goes_on_to_more_steps(call: Cli, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    done = call("train", "debug", "--out", "run", "--resume", "--steps", 3, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "step 3" in done.stdout


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("train nothing --out new", "nothing"),
        ("train debug --out new --set nothing=1", "nothing"),
        ("train debug --out new --set steps=many", "many"),
        ("train debug --out new --set network.widths=7", "7"),
        ("train debug --out new --data missing", "missing"),
        ("train fashion-mnist --out new", "--data"),
        ("export missing --out new", "missing"),
        ("evaluate missing --data missing", "missing"),
        ("classifier missing --out new.safetensors", "missing"),
    ],
)
def test_what_cannot_be_done_exits_with_1_and_makes_nothing(
    call: Cli, tmp_path: Path, command: str, named: str
) -> None:
    check_failure(call(*command.split()), 1, named)
    assert not list(tmp_path.iterdir())


def test_the_bundle_says_how_it_was_made(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert (manifest["name"], manifest["training"]["trained_steps"]) == ("mine", 2)
    assert "ddaebm train debug" in (bundle / "README.md").read_text()


def test_the_bundle_is_evaluated_and_sampled(bundle: Path, folder: Path) -> None:
    done = run_here("sample", "--bundle", "bundle", "--out", "made.npy", "-n", 12, cwd=folder)
    assert done.returncode == 0, done.stderr
    np.save(folder / "black.npy", np.zeros((5, 16, 16), np.uint8))
    done = run_here("evaluate", "bundle", "--data", "made.npy", "--ood", "black=black.npy", cwd=folder)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["test_images"] == 12
    assert [alarms["alpha"] for alarms in report["false_alarms"]] == [0.01, 0.05, 0.1]
    assert report["ood"]["black"]["images"] == 5
    assert 0 <= report["ood"]["black"]["auroc"] <= 1
    assert len(report["ood"]["black"]["auroc_of_each_energy"]) == 2


def test_samples_are_measured_by_a_classifier_of_one_s_own(run: Path, folder: Path) -> None:
    """`evaluate` says the same of a run and of its bundle, and the model card repeats it."""
    rng = np.random.default_rng(0)
    for label, top in (("dark", 90), ("bright", 255)):
        for i in range(60):
            (folder / "labelled" / label).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(top // 2, top, (16, 16, 1), dtype=np.uint8)
            (folder / "labelled" / label / f"{i}.png").write_bytes(encode_png(pixels))
    done = run_here("classifier", "labelled", "--out", "own.safetensors", "--epochs", 2, cwd=folder)
    assert done.returncode == 0, done.stderr
    sha256 = hashlib.sha256((folder / "own.safetensors").read_bytes()).hexdigest()
    assert re.search(r"own\.safetensors: 2 classes, right on [01]\.\d+ of the held-out", done.stdout)
    assert done.stdout.endswith(f"sha256 {sha256}\n")

    done = run_here("evaluate", "run", "--data", "labelled", "--classifier", "own.safetensors", "--train", "labelled",
                   "-n", 40, "--seed", 9, cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["samples"]
    assert (report["images"], report["seed"], report["classifier"]) == (40, 9, sha256)
    assert report["floor"]["images"] == 24  # a fifth of 120
    assert sum(report["classes"].values()) == 40

    done = run_here("export", "run", "--out", "measured", "--test", "labelled", "--classifier", "own.safetensors",
                   cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"the classifier\n`{sha256[:12]}`" in (folder / "measured" / "README.md").read_text()


@pytest.mark.parametrize("alone", [["--classifier", "x"], ["--train", "x"]], ids=str)
def test_a_classifier_without_a_floor_is_bad_usage(call: Cli, alone: list[str]) -> None:
    check_failure(call("evaluate", "missing", "--data", "missing", *alone), 2, "--classifier and --train go together")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_training_that_is_interrupted_loses_no_step(cli: Cli, tmp_path: Path, number: signal.Signals) -> None:
    settings = ["--set", "log_every=1", "--set", "checkpoint_every=9999"]
    arguments = ["train", "debug", "--out", "run", "--device", "cpu", *settings]
    command = [*COMMAND, *arguments, "--steps", "5000"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        assert process.stderr.readline() == (
            "shapes: images of 16x16 grey, 2400 to train on, 600 held out, 250 of them for p-values; widths 8, 16\n"
        )
        process.stderr.readline()  # the first step
        process.send_signal(number)
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    stopped = re.fullmatch(r"run: stopped at step (\d+) of 5000; the same command with --resume goes on\n", said)
    assert stopped
    done = cli(*arguments, "--steps", int(stopped[1]) + 1, "--resume")
    assert done.returncode == 0
    assert "run: going on with the run in it" in done.stderr
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, int(stopped[1]) + 2))  # none twice


def test_resuming_where_there_is_no_run_says_so(call: Cli) -> None:
    done = call("train", "debug", "--out", "run", "--device", "cpu", "--steps", 1, "--resume")
    assert "run: no run in it yet, beginning at step 0" in done.stderr
