"""How a run is described: validation, overrides, and no setting that nothing reads."""

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest

import ddaebm.training.config
from ddaebm.model.errors import ConfigError
from ddaebm.training.config import TrainConfig
from ddaebm.training.recipes import make_config

DEBUG = make_config("debug")

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
    ("contrast", "hinge"),
    ("contrast", "non-saturating"),  # whose discriminator sees pairs, as this network does not
    ("forward_weight", -1.0),
    ("reconstruct_from", "data"),
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
        ("network.num_steps", "0", "num_steps must be at least 1"),
        ("network.widths", "8,x", "cannot read"),
        ("network.energy_sees_next", "true", "energy_sees_next is for points"),
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
            read |= {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "config"}
    assert fields - read == set()
