"""Figure 1: small runs of the real command; what it writes, what it refuses, and that it resumes."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddaebm.model.errors import ConfigError
from ddaebm.training.data import load_data
from ddaebm.training.modes import grid_kl
from ddaebm.training.recipes import make_config
from ddaebm.training.reproduce import fig1_toy as toy


@pytest.fixture(scope="module")
def figure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("figure")
    toy.reproduce(out, steps=30, seed=3, device="cpu")
    return out


def test_it_writes_the_figure_and_the_arrays_behind_it(figure: Path) -> None:
    metrics = json.loads((figure / "metrics.json").read_text())
    assert list(metrics) == [
        "recipe", "dataset", "seed", "modes", "within_4_sigma", "std_ratio", "largest_mode", "smallest_mode",
        "kl_density", "nll", "steps", "seconds", "steps_per_second",
    ]  # fmt: skip
    assert (metrics["steps"], metrics["seed"]) == (30, 3)
    assert metrics["seconds"] * metrics["steps_per_second"] == pytest.approx(30)
    samples, log_density = np.load(figure / "samples.npy"), np.load(figure / "log_density.npy")
    assert samples.shape == (10_000, 2)
    assert log_density.shape == (300, 300)
    assert metrics["kl_density"] == pytest.approx(grid_kl(toy.log_25_gaussians(toy.GRID), log_density), rel=1e-6)
    with Image.open(figure / "figure.png") as image:
        assert image.size == (1440, 504)


def test_the_same_seed_gives_the_same_numbers_and_a_finished_run_is_not_trained_again(
    figure: Path, tmp_path: Path
) -> None:
    first = {name: (figure / name).read_bytes() for name in ("samples.npy", "log_density.npy", "figure.png")}
    before = json.loads((figure / "metrics.json").read_text())
    assert toy.reproduce(figure, steps=30, seed=3, device="cpu") == before
    toy.reproduce(tmp_path, steps=30, seed=3, device="cpu")
    for name, contents in first.items():
        assert (figure / name).read_bytes() == contents
        assert (tmp_path / name).read_bytes() == contents


def test_the_true_density_is_a_density_with_its_known_entropy() -> None:
    fine = np.linspace(-1.7, 1.7, 1_500)
    density = np.exp(toy.log_25_gaussians(np.stack(np.meshgrid(fine, fine), -1)))
    assert density.sum() * (fine[1] - fine[0]) ** 2 == pytest.approx(1, abs=1e-5)
    points = load_data("25-gaussians", make_config("toy").network)[:20_000].astype(np.float64)
    entropy = np.log(25 * 2 * np.pi * np.e * toy.GAUSSIAN_STD**2)
    assert -toy.log_25_gaussians(points).mean() == pytest.approx(entropy, abs=0.03)


@pytest.mark.parametrize("dataset", ["pinwheel", "swiss-roll"])
def test_other_sets_have_no_modes_but_a_likelihood(dataset: str, tmp_path: Path) -> None:
    metrics = toy.reproduce(tmp_path, "toy-paper", dataset, steps=3, device="cpu")
    assert "modes" not in metrics
    assert "kl_density" not in metrics
    assert 0 < metrics["nll"] < 6
    assert metrics["recipe"] == "toy-paper"


def test_a_folder_of_another_run_is_refused(figure: Path) -> None:
    with pytest.raises(ConfigError, match="other settings"):
        toy.reproduce(figure, steps=30, seed=4, device="cpu")


@pytest.mark.parametrize("wrong", [{"recipe": "debug"}, {"dataset": "shapes"}])
def test_only_points_make_this_figure(wrong: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the toy figure has"):
        toy.reproduce(tmp_path, **wrong)


def test_the_papers_recipe_keeps_the_papers_settings() -> None:
    ours, paper = (dataclasses.asdict(make_config(name)) for name in ("toy", "toy-paper"))
    assert (paper["gamma"], paper["entropy_weight"], paper["gradient_penalty"]) == (0.02, 0.1, "conditional")
    assert (paper["penalty_every"], paper["value_penalty"], paper["likelihood_floor"]) == (1, 0.0, 0.0)
    assert paper["network"]["widths"] == (300, 300)
    assert ours["data"] == paper["data"] == "25-gaussians"
