"""benchmarks/search.py: equal training FLOP, one result a variant, and a table of them."""

import argparse
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ddaebm.model.nets.diffusion import Diffusion
from ddaebm.model.schedule import make_schedule
from ddaebm.training.classifier import train_classifier, write_classifier
from ddaebm.training.data import load_data
from ddaebm.training.labels import Labelled
from ddaebm.training.recipes import make_config
from ddaebm.training.step import draw, make_state, train_step

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "search.py"


@pytest.fixture(scope="module")
def search() -> ModuleType:
    spec = importlib.util.spec_from_file_location("search", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_flop_are_those_of_torch_s_counter_where_it_can_follow(search: ModuleType) -> None:
    config = make_config("debug").override({"penalty_every": "1000000000", "batch_size": "4"})
    state = make_state(config)
    state.step = 1  # no penalty
    draws = draw(config, 1, 4, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        train_step(config, Diffusion(make_schedule(config.network)), state, torch.zeros(4, 1, 16, 16), draws,
                   search.Accelerator(cpu=True))  # fmt: skip
    assert search.flop_per_step(config) == pytest.approx(counter.get_total_flops(), rel=1e-6)
    each = search.flop_per_step(config.override({"penalty_every": "1"}))
    lazily = search.flop_per_step(config.override({"penalty_every": "4"}))
    assert each > lazily > search.flop_per_step(config)
    assert lazily - search.flop_per_step(config) == pytest.approx((each - search.flop_per_step(config)) / 4, rel=1e-6)


def test_variants_are_one_change_each_that_is_a_setting_of_the_recipe(search: ModuleType) -> None:
    config = make_config("fashion-mnist-paper").override(search.BASE)
    for name, settings in search.VARIANTS.items():
        assert (config.override(settings) == config) == (name == "base")


def test_a_variant_is_trained_measured_and_tabled_once(search: ModuleType, tmp_path: Path) -> None:
    images = load_data("shapes", make_config("debug").network)[:120]
    shapes = str(tmp_path / "shapes.npy")
    np.save(shapes, images)
    labelled = Labelled(images, np.arange(120) % 2, ("a", "b"))
    write_classifier(tmp_path / "own.safetensors", train_classifier(labelled, epochs=1)[0])
    args = argparse.Namespace(
        recipe="debug", data=shapes, test=shapes, ood=[("same", shapes)], samples=50, out=tmp_path / "out",
        classifier=str(tmp_path / "own.safetensors"),
        budget=3.4 * search.flop_per_step(make_config("debug").override(search.BASE)),
    )  # fmt: skip
    search.run_variant("base", args)
    result = tmp_path / "out" / "base" / "result.json"
    found = json.loads(result.read_text())
    assert (found["steps"], found["settings"], found["samples"]["images"]) == (3, {}, 50)
    assert found["ood"]["same"]["images"] == 24
    before = result.read_bytes()
    search.run_variant("base", args)
    assert result.read_bytes() == before
    better = {**found, "settings": {"gamma": "0.1"}, "samples": {**found["samples"], "fd_classifier": -1.25}}
    (tmp_path / "out" / "gamma-0.1").mkdir()
    (tmp_path / "out" / "gamma-0.1" / "result.json").write_text(json.dumps(better))
    rows = search.table(tmp_path / "out").splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| gamma-0.1", "| base"]
    assert "`gamma=0.1`" in rows[2]
    assert " | -1.25 | " in rows[2]
    assert {row.count("|") for row in rows} == {10}
