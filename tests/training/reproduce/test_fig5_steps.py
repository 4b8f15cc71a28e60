"""Figure 5: small runs of points and of images; measured where it says, and resumed."""

import json
import signal
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from numpy.typing import NDArray

from ddaebm.model.errors import ConfigError, DataError
from ddaebm.model.noise import image_seeds
from ddaebm.training.data import GAUSSIAN_CENTRES, GAUSSIAN_STD
from ddaebm.training.modes import mode_report
from ddaebm.training.reproduce import fig5_steps as steps
from ddaebm.training.reproduce.figure import Arrays
from ddaebm.training.reproduce.measures import OfPoints
from ddaebm.training.step import TrainState
from ddaebm.training.trainer import generate
from tests.training.reproduce.golden import untrained_classifier


def test_interrupted_it_goes_on_to_the_same_curves(tmp_path: Path) -> None:
    calls: list[int] = []
    look = OfPoints.look

    def stopping(of: OfPoints, state: TrainState) -> Arrays:
        calls.append(state.step)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return look(of, state)

    with patch.multiple(steps, NUM_STEPS=(1, 2), POINTS=2):
        whole = steps.reproduce(tmp_path / "whole", steps=6, images=500, device="cpu")
        with patch.object(OfPoints, "look", stopping):
            with pytest.raises(KeyboardInterrupt):
                steps.reproduce(tmp_path / "parts", steps=6, images=500, device="cpu")
            assert steps.reproduce(tmp_path / "parts", steps=6, images=500, device="cpu") == whole
    assert list(whole["num_steps"]) == ["1", "2"]
    assert whole["num_steps"]["2"]["train_steps"] == [3, 6]
    assert json.loads((tmp_path / "parts" / "metrics.json").read_text()) == whole


def test_images_are_measured_by_a_classifier(tmp_path: Path) -> None:
    given = {"classifier": untrained_classifier(tmp_path), "steps": 2, "images": 8, "device": "cpu"}
    shapes = steps.Dataset("debug", 2, 8, ("fd_classifier",))
    with patch.multiple(steps, NUM_STEPS=(2,), POINTS=1, DATASETS={"shapes": shapes}):
        metrics = steps.reproduce(tmp_path / "figure", "shapes", **given)
    assert metrics["num_steps"]["2"]["train_steps"] == [2]
    assert metrics["num_steps"]["2"]["fd_classifier"][0] > 0
    with np.load(tmp_path / "figure" / "arrays.npz") as arrays:
        assert arrays["T-2-precision"].shape == (1,)


def test_what_is_measured_is_the_average_network(tmp_path: Path) -> None:
    seen: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    look = OfPoints.look

    def watching(of: OfPoints, state: TrainState) -> Arrays:
        found = look(of, state)
        wanted = generate(of.config, state.generator_ema, image_seeds(of.config.seed, of.count)).numpy()
        seen.append((found["samples"], wanted))
        return found

    with patch.multiple(steps, NUM_STEPS=(1,), POINTS=1), patch.object(OfPoints, "look", watching):
        metrics = steps.reproduce(tmp_path, steps=2, images=200, device="cpu")
    ((samples, wanted),) = seen
    np.testing.assert_array_equal(samples, wanted)
    report = mode_report(wanted, GAUSSIAN_CENTRES, GAUSSIAN_STD)
    assert metrics["num_steps"]["1"]["std_ratio"] == [report["std_ratio"]]


def test_it_says_what_it_has_and_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="25-gaussians, fashion-mnist"):
        steps.reproduce(tmp_path, "swiss-roll")
    with pytest.raises(DataError, match="needs --data PATH: the training images of fashion-mnist"):
        steps.reproduce(tmp_path, "fashion-mnist")
