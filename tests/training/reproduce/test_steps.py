"""Figure 5: small runs of points and of images; measured where it says, and resumed."""

import json
import signal
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from model.errors import ConfigError, DataError
from tests.training.reproduce.golden import untrained_classifier
from training.metrics import mode_report
from training.reproduce import steps
from training.step import TrainState
from training.trainer import generate


def test_interrupted_it_goes_on_to_the_same_curves(tmp_path: Path) -> None:
    calls: list[int] = []
    measure = steps._of_points

    def stopping(*arguments: object) -> steps.Measure:
        inner = measure(*arguments)

        def measured(state: TrainState) -> dict[str, float]:
            calls.append(state.step)
            if len(calls) == 1:
                signal.raise_signal(signal.SIGINT)
            return dict(inner(state))

        return measured

    with patch.multiple(steps, NUM_STEPS=(1, 2), POINTS=2):
        whole = steps.reproduce(tmp_path / "whole", steps=6, images=500, device="cpu")
        with patch.object(steps, "_of_points", stopping):
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
    seen: list[tuple[dict[str, float], dict[str, float]]] = []
    measure = steps._of_points

    def watching(config: steps.TrainConfig, count: int) -> steps.Measure:
        inner = measure(config, count)

        def measured(state: TrainState) -> dict[str, float]:
            samples = generate(config, state.generator_ema, steps.image_seeds(config.seed, count)).numpy()
            seen.append((dict(inner(state)), mode_report(samples, steps.GAUSSIAN_CENTRES, steps.GAUSSIAN_STD)))
            return seen[-1][0]

        return measured

    with patch.multiple(steps, NUM_STEPS=(1,), POINTS=1, _of_points=watching):
        steps.reproduce(tmp_path, steps=2, images=200, device="cpu")
    ((measured, wanted),) = seen
    assert measured.items() >= wanted.items()


def test_it_says_what_it_has_and_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="25-gaussians, fashion-mnist"):
        steps.reproduce(tmp_path, "swiss-roll")
    with pytest.raises(DataError, match="needs --data PATH: the training images of fashion-mnist"):
        steps.reproduce(tmp_path, "fashion-mnist")
