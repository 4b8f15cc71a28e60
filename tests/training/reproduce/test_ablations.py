"""The table of ablations: what its variants are, and its sums over seeds."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from ddaebm.model.errors import ConfigError, DataError
from ddaebm.training.data import load_data, split
from ddaebm.training.recipes import make_config
from ddaebm.training.reproduce import ablations
from ddaebm.training.reproduce.measures import OfPoints
from tests.training.reproduce.golden import untrained_classifier


def test_variants_change_what_they_say_and_only_that() -> None:
    base = make_config("toy")
    configs = {name: base.override(variant.changes) for name, variant in ablations.VARIANTS.items()}
    assert configs["all parts"] == base
    assert base.entropy_weight == base.forward_weight == 1
    methods = {name: (str(configs[name]), variant.make_loss) for name, variant in ablations.VARIANTS.items()}
    assert len(set(methods.values())) == len(configs) == 8
    for config in configs.values():
        assert (config.batch_size, config.lr_generator, config.steps) == (400, 1e-3, 45_000)


def test_means_and_spreads_over_seeds_and_no_density_of_a_discriminator(tmp_path: Path) -> None:
    two = ablations.DATASETS["25-gaussians"]._replace(variants=("no encoder", "DDGAN's loss"), samples=500)
    with patch.multiple(ablations, SEEDS=2, DATASETS={"25-gaussians": two}):
        metrics = ablations.reproduce(tmp_path, steps=3, seed=4, device="cpu")
        (tmp_path / "metrics.json").unlink()
        with patch.object(ablations, "train_to_the_end", lambda *_: pytest.fail("trained again")):
            assert ablations.reproduce(tmp_path, steps=3, seed=4, device="cpu") == metrics
    assert metrics["seeds"] == [4, 5]
    row = metrics["variants"]["no encoder"]["std_ratio"]
    assert row["mean"] == pytest.approx(np.mean(row["each"]))
    assert row["spread"] == pytest.approx(abs(row["each"][0] - row["each"][1]) / np.sqrt(2))
    assert "kl_density" in metrics["variants"]["no encoder"]
    assert "kl_density" not in metrics["variants"]["DDGAN's loss"]
    with np.load(tmp_path / "arrays.npz") as arrays:
        assert arrays["no encoder: samples"].shape == (2, 500, 2)
    assert metrics["variants"]["no encoder"]["std_ratio"] != metrics["variants"]["DDGAN's loss"]["std_ratio"]


def test_a_run_is_not_resumed_with_another_loss(tmp_path: Path) -> None:
    config = make_config("toy").override({"steps": "1", "batch_size": "8"})
    parts, of = split(load_data(config.data, config.network)), OfPoints(config, 10)
    given = (config, parts, of, tmp_path, "cpu")
    ablations._train_variant(ablations.VARIANTS["no encoder"], *given)
    with pytest.raises(ConfigError, match="was made with other settings"):
        ablations._train_variant(ablations.VARIANTS["all parts"], *given)


def test_variants_of_images_are_measured_by_a_classifier(tmp_path: Path) -> None:
    shapes = ablations.Dataset("debug", {}, 2, 8, ("all parts", "no gradient penalty"), ("fd_classifier", "recall"))
    given = {"classifier": untrained_classifier(tmp_path), "device": "cpu"}
    with patch.multiple(ablations, SEEDS=2, DATASETS={"shapes": shapes}):
        metrics = ablations.reproduce(tmp_path / "figure", "shapes", **given)
    assert [list(row) for row in metrics["variants"].values()] == [["fd_classifier", "recall"]] * 2
    assert metrics["variants"]["all parts"] != metrics["variants"]["no gradient penalty"]
    with np.load(tmp_path / "figure" / "arrays.npz") as arrays:
        assert arrays["no gradient penalty: samples"].shape == (2, 8, 16, 16, 1)


def test_sets_change_their_recipe_and_it_says_what_it_needs(tmp_path: Path) -> None:
    for dataset in ablations.DATASETS.values():
        base = make_config(dataset.recipe).override(dataset.changes)
        variants = [ablations.VARIANTS[name] for name in dataset.variants]
        methods = {(str(base.override(variant.changes)), variant.make_loss) for variant in variants}
        assert len(methods) == len(variants)
    with pytest.raises(ConfigError, match="25-gaussians, fashion-mnist"):
        ablations.reproduce(tmp_path, "pinwheel")
    with pytest.raises(DataError, match="needs --data PATH: the training images of fashion-mnist"):
        ablations.reproduce(tmp_path, "fashion-mnist")
