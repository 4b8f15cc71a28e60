"""`prepare_run`: new runs, resumed runs, and options that contradict each other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddaebm.model.bundle import load_bundle
from ddaebm.model.errors import ConfigError, DataError
from ddaebm.training import checkpoint
from ddaebm.training.recipes import make_config
from ddaebm.training.reproduce import UsageError
from ddaebm.training.run import prepare_run
from ddaebm.training.start import ENCODER_STEPS
from ddaebm.training.step import make_state

DEBUG = make_config("debug")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of the debug recipe at step 0."""
    out = tmp_path / "run"
    checkpoint.write_config(out, DEBUG.override({"seed": "3"}))
    checkpoint.save(out, make_state(DEBUG), DEBUG)
    return out


def test_a_new_run_is_the_recipe_with_its_overrides(tmp_path: Path) -> None:
    prepared = prepare_run("debug", tmp_path / "run", {"steps": "7", "gamma": "0.5"})
    assert prepared.config == DEBUG.override({"steps": "7", "gamma": "0.5"})
    assert prepared.train.shape == (2_400, 16, 16, 1)
    (message,) = prepared.messages
    assert message.startswith("shapes: images of 16x16 grey, 2400 to train on, 600 held out")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run_images.npz"]


def test_a_resumed_run_keeps_its_settings(run: Path) -> None:
    prepared = prepare_run("debug", run, {"steps": "50"}, resume=True)
    assert (prepared.config.seed, prepared.config.steps) == (3, 50)
    assert prepared.messages[-1] == f"{run}: going on with the run in it"


def test_resuming_without_a_run_begins_one(tmp_path: Path) -> None:
    prepared = prepare_run("debug", tmp_path / "run", {}, resume=True)
    assert prepared.config == DEBUG
    assert prepared.messages[-1].endswith("no run in it yet, beginning at step 0")


def test_a_bundle_gives_the_first_checkpoint_and_the_encoder_its_steps(tmp_path: Path, debug_bundle: Path) -> None:
    images = tmp_path / "images.npy"
    np.save(images, np.random.default_rng(3).integers(256, size=(120, 16, 16, 1), dtype=np.uint8))
    bundle = load_bundle(debug_bundle)
    changes = {f"network.{k}": str(v) for k, v in bundle.config.to_dict().items() if type(v) is int}
    out = tmp_path / "run"
    prepared = prepare_run("debug", out, {"data": str(images), **changes}, start=str(debug_bundle))
    assert (prepared.config.start, prepared.config.encoder_steps) == (bundle.digest, ENCODER_STEPS)
    assert [path.name for path in checkpoint.list_checkpoints(out)] == ["step-0000000"]
    assert prepare_run("debug", out, {}, start=str(debug_bundle), resume=True).config == prepared.config


def test_images_takes_its_form_from_the_data_or_the_options(tmp_path: Path) -> None:
    images = tmp_path / "images.npy"
    np.save(images, np.zeros((80, 32, 32, 1), np.uint8))
    prepared = prepare_run("images", tmp_path / "run", {"data": str(images)})
    assert prepared.config.network.data_shape == (1, 32, 32)
    prepared = prepare_run("images", tmp_path / "run", {"data": str(images)}, size=(16, 24), channels=3)
    assert prepared.config.network.data_shape == (3, 16, 24)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("debug", {}, "already holds a run; add --resume"),
        ("toy", {"resume": True}, "is a run of 'debug', not of 'toy'"),
        ("debug", {"resume": True, "size": (16, 16)}, "--size and --channels are for the recipe images"),
        ("images", {"resume": True, "channels": 2}, "--channels is 1"),
    ],
)
def test_options_that_contradict_the_run_are_usage_errors(
    run: Path, recipe: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        prepare_run(recipe, run, {}, **options)


def test_images_needs_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the recipe images needs --data PATH"):
        prepare_run("images", tmp_path / "run", {})


@pytest.mark.parametrize(
    ("recipe", "assignments", "error", "message"),
    [
        ("nothing", {}, ConfigError, "no recipe 'nothing'"),
        ("debug", {"nothing": "1"}, ConfigError, "--set nothing: no such setting"),
        ("debug", {"penalize_generated": "true"}, ConfigError, "penalize_generated=True is no longer supported"),
        ("debug", {"data": "missing"}, DataError, "missing"),
    ],
)
def test_other_errors_are_not_usage_errors(
    tmp_path: Path, recipe: str, assignments: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        prepare_run(recipe, tmp_path / "run", assignments)
    assert not isinstance(raised.value, UsageError)
    assert not (tmp_path / "run").exists()
