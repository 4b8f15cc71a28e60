"""How a run is described: validation, overrides, and no setting that nothing reads."""

import ast
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import ddaebm.training.config
from ddaebm.model.bundle import load_bundle
from ddaebm.model.config import ModelConfig
from ddaebm.model.errors import ConfigError
from ddaebm.training.config import TrainConfig
from ddaebm.training.recipes import make_config

DEBUG = make_config("debug")
ROOT = Path(__file__).parents[2]
bundles = ROOT / "model" / "bundles"
SHIPPED = ("cifar10-jpeg", "fashion-mnist")
WEIGHTS = ROOT.parent / "shared" / "weights"

BAD = [
    ("steps", 0),
    ("batch_size", 0),
    ("penalty_every", 0),
    ("log_every", 0),
    ("sample_every", 0),
    ("checkpoint_every", -1),
    ("seed", -1),
    ("lr_generator", -1e-4),
    ("lr_energy", -1e-4),
    ("lr_final", -1e-4),
    ("gamma", -0.1),
    ("entropy_weight", -0.1),
    ("value_penalty", -1.0),
    ("likelihood_floor", float("nan")),
    ("gradient_penalty", "r2"),
    ("forward_weight", -1.0),
    ("denoise_weight", -1.0),
    ("denoise_weight", 1.0),  # the network has no output for it
    ("precision", "fp16"),
    ("ema_decay", 1.0),
    ("ema_decay", -0.1),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_value_without_meaning_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        dataclasses.replace(DEBUG, **{name: value})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", "7", 7),
        ("gamma", "1e-3", 1e-3),
        ("gamma", "1", 1.0),
        ("data", "some/folder", "some/folder"),
        ("gradient_penalty", "conditional", "conditional"),
        ("adam_betas", "0.5,0.9", (0.5, 0.9)),
        ("adam_betas", "[0.5, 0.9]", (0.5, 0.9)),
    ],
)
def test_override_parses_by_the_type_of_the_field(name: str, text: str, value: Any) -> None:
    changed = DEBUG.override({name: text})
    assert getattr(changed, name) == value
    assert type(getattr(changed, name)) is type(value)
    assert dataclasses.replace(changed, **{name: getattr(DEBUG, name)}) == DEBUG


def test_override_reaches_the_network_and_leaves_the_original() -> None:
    changed = DEBUG.override({"network.widths": "16,32,16", "network.num_steps": "2", "seed": "5",
                              "network.attention": "4", "network.pyramid": "true"})  # fmt: skip
    assert (changed.network.attention, changed.network.pyramid) == ((4,), True)
    assert (changed.network.widths, changed.network.num_steps, changed.seed) == ((16, 32, 16), 2, 5)
    assert (DEBUG.network.widths, DEBUG.seed) == ((8, 16), 0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("stepz", "7", "--set stepz: no such setting"),
        ("network.wdths", "7", "no such setting"),
        ("network", "{}", "no such setting"),
        ("network.widths.first", "7", "no such setting"),
        ("optimizer.lr", "7", "no such setting"),
        ("", "7", "no such setting"),
        ("steps", "many", "cannot read 'many'"),
        ("steps", "7.5", "needs int"),
        ("steps", "true", "needs int"),
        ("steps", "", "cannot read"),
        ("gamma", '"0.1"', "needs float"),
        ("adam_betas", "0.5,", "cannot read"),
        ("steps", "0", "steps must be at least 1"),
        ("network.num_steps", "0", "num_steps must lie between 1"),
        ("network.widths", "8,x", "cannot read"),
        ("network.energy_sees_next", "true", "energy_sees_next=True is no longer supported"),
        ("penalize_generated", "true", "penalize_generated=True is no longer supported; it was removed"),
        ("contrast", "relativistic", "contrast='relativistic' is no longer supported"),
        ("reconstruct_from", "prior", "reconstruct_from='prior' is no longer supported"),
        ("penalize_generated", "maybe", "cannot read 'maybe'"),
    ],
)
def test_override_refuses(name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DEBUG.override({name: text})


@pytest.mark.parametrize("values", [{}, {"network": {}}, {**DEBUG.to_dict(), "unheard_of": 1}, {"network": None}])
def test_from_dict_refuses_what_is_no_config(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TrainConfig.from_dict(values)


def test_every_field_is_read_by_the_source() -> None:
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    read: set[str] = set()
    for file in Path(ddaebm.training.config.__file__).parent.glob("*.py"):
        if file.name != "config.py":  # validating a setting is not using it
            nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)]
            read |= {node.attr for node in nodes if ast.unparse(node.value) in ("config", "self.config")}
    assert fields - read == set()


# config.json of the debug recipe as commit f17085d wrote it.
EARLIER: dict[str, Any] = {
    "recipe": "debug", "data": "shapes", "steps": 40, "start": "", "encoder_steps": 0, "batch_size": 32, "seed": 0,
    "lr_generator": 2e-4, "lr_energy": 2e-4, "lr_final": 1e-5, "adam_betas": [0.0, 0.9], "contrast": "difference",
    "gradient_penalty": "r1", "penalize_generated": False, "gamma": 0.02, "penalty_every": 1, "entropy_weight": 0.1,
    "denoise_weight": 0.0, "value_penalty": 0.0, "forward_weight": 1.0, "reconstruct_from": "encoder",
    "likelihood_floor": 0.0, "noise_at_zero": False, "ema_decay": 0.999, "flip": False, "precision": "fp32",
    "log_every": 5, "sample_every": 20, "checkpoint_every": 20,
    "network": {
        "data_shape": [1, 16, 16], "num_steps": 4, "beta_min": 0.1, "beta_max": 20.0, "time_eps": 0.001,
        "latent_dim": 8, "widths": [8, 16], "frequency": 0.0, "energy_curvature": 0.0, "linear_skip": False,
        "energy_sees_next": False, "embed_dim": 16, "patch_size": 2, "blocks_per_level": 1, "middle_blocks": 1,
        "norm_groups": 4, "attention": [], "resample": "strided", "pyramid": False, "mapping_depth": 3,
        "energy_denoises": False,
    },
}  # fmt: skip
RETIRED = {"contrast": "difference", "penalize_generated": False, "reconstruct_from": "encoder"}


def test_an_earlier_config_loads_and_its_retired_keys_are_dropped() -> None:
    config = TrainConfig.from_dict(EARLIER)
    assert config == DEBUG
    assert EARLIER | RETIRED == EARLIER
    assert set(EARLIER) - set(config.to_dict()) == set(RETIRED)
    assert set(EARLIER["network"]) - set(config.network.to_dict()) == {"energy_sees_next"}
    assert DEBUG.override({"contrast": "difference", "network.energy_sees_next": "false"}) == DEBUG


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("contrast", "relativistic"),
        ("contrast", "non-saturating"),
        ("penalize_generated", True),
        ("reconstruct_from", "prior"),
    ],
)
def test_a_retired_key_with_another_value_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name}={value!r} is no longer supported; it was removed"):
        TrainConfig.from_dict({**EARLIER, name: value})


def test_a_retired_key_of_the_network_with_another_value_is_refused_by_name() -> None:
    values = make_config("toy").to_dict()
    values["network"]["energy_sees_next"] = True
    with pytest.raises(ConfigError, match=r"^energy_sees_next=True is no longer supported; it was removed"):
        TrainConfig.from_dict(values)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_bundles_load(name: str) -> None:
    manifest = json.loads((bundles / name / "bundle.json").read_text())
    assert load_bundle(bundles / name).config == ModelConfig.from_dict(manifest["model"])
    training = {key: value for key, value in manifest["training"].items() if key not in ("trained_steps", "torch")}
    config = TrainConfig.from_dict({**training, "network": manifest["model"], "data": "somewhere"})
    assert config.network.energy_denoises


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="no folder ../shared/weights")
def test_configs_of_long_runs_load() -> None:
    for path in WEIGHTS.glob("**/phase-*.json"):
        values = json.loads(path.read_text())
        assert set(values) <= set(EARLIER)
        assert TrainConfig.from_dict(values).steps == values["steps"]
