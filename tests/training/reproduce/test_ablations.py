"""The table of ablations: what its variants are, and its sums over seeds."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from training.recipes import make_config
from training.reproduce import ablations


def test_variants_change_what_they_say_and_only_that() -> None:
    base = make_config("toy")
    configs = {name: base.override(changes) for name, changes in ablations.VARIANTS.items()}
    assert configs["all parts, lambda 1"] == base
    assert base.entropy_weight == base.forward_weight == 1
    assert len({str(config) for config in configs.values()}) == len(configs) == 7
    assert configs["DDGAN's loss"].network.energy_sees_next
    for config in configs.values():
        assert (config.batch_size, config.lr_generator, config.steps) == (400, 1e-3, 45_000)


def test_means_and_spreads_over_seeds_and_no_density_of_a_discriminator(tmp_path: Path) -> None:
    two = {name: ablations.VARIANTS[name] for name in ("no encoder", "DDGAN's loss")}
    with patch.multiple(ablations, SEEDS=2, SAMPLES=500, VARIANTS=two):
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
