"""`ModelConfig` is validated, survives JSON, and has no setting that nothing reads."""

import ast
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

import ddaebm.model.config
from ddaebm.model.config import RETIRED, ModelConfig
from ddaebm.model.errors import ConfigError

IMAGE = ModelConfig(data_shape=(3, 32, 32))
POINTS = ModelConfig(data_shape=(2,), widths=(30, 30))

BAD = [
    ({"data_shape": ()}, "data_shape"),
    ({"data_shape": (28, 28)}, "data_shape"),
    ({"data_shape": (1, 0, 28)}, "data_shape"),
    ({"num_steps": 0}, "num_steps"),
    ({"latent_dim": 0}, "latent_dim"),
    ({"patch_size": 0}, "patch_size"),
    ({"blocks_per_level": 0}, "blocks_per_level"),
    ({"middle_blocks": 0}, "middle_blocks"),
    ({"norm_groups": 0}, "norm_groups"),
    ({"beta_min": 0.0}, "beta_min"),
    ({"beta_min": 30.0}, "beta_min"),
    ({"beta_min": float("nan")}, "beta_min"),
    ({"beta_max": float("inf")}, "beta_max"),
    ({"time_eps": 0.0}, "time_eps"),
    ({"time_eps": 1.0}, "time_eps"),
    ({"embed_dim": 2}, "embed_dim"),
    ({"frequency": 0.5}, "frequency"),
    ({"frequency": math.inf}, "frequency"),
    ({"energy_curvature": -1.0}, "energy_curvature"),
    ({"linear_skip": True}, "linear_skip is for points"),
    ({"embed_dim": 33}, "embed_dim"),
    ({"mapping_depth": 0}, "mapping_depth"),
    ({"resample": "bicubic"}, "resample must be strided or fir"),
    ({"attention": (32,)}, r"attention must name heights of feature maps, from \(16, 8\), not \(32,\)"),
    ({"attention": (8, 4)}, "attention"),
    ({"pyramid": True, "widths": (32,)}, "pyramid needs a coarser level"),
    ({"widths": ()}, "widths"),
    ({"widths": (32, -8)}, "widths"),
    ({"widths": (32, 60)}, "norm_groups"),
    ({"data_shape": (1, 30, 32)}, "multiples of 4"),
    ({"data_shape": (1, 28, 28), "widths": (8, 8, 8, 8)}, "multiples of 16"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_value_without_meaning_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(IMAGE, **change)


@pytest.mark.parametrize("config", [IMAGE, POINTS, dataclasses.replace(IMAGE, attention=(16,))])
def test_json_round_trip(config: ModelConfig) -> None:
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_shape_decides_between_images_and_points() -> None:
    assert IMAGE.is_image
    assert not POINTS.is_image


def test_points_are_free_of_the_unets_constraints() -> None:
    assert ModelConfig(data_shape=(3,), widths=(7,), attention=(16,), pyramid=True).widths == (7,)


def test_heights_are_those_of_the_levels() -> None:
    assert dataclasses.replace(IMAGE, data_shape=(1, 48, 16), widths=(8, 8, 8)).heights == (24, 12, 6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data_shape": [2], "colour": 1, "beta_mx": 2}, "unknown model config fields: beta_mx, colour"),
        ({}, "data_shape"),
        ({"data_shape": 5}, "model config"),
        ({"data_shape": [2], "num_steps": "four"}, "model config"),
        ({"data_shape": [2], "energy_sees_next": True}, "energy_sees_next=True is no longer supported"),
    ],
)
def test_from_dict_refuses_what_it_does_not_know(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict(values)


def test_a_retired_field_is_dropped_at_its_old_default() -> None:
    assert ModelConfig.from_dict({**POINTS.to_dict(), **RETIRED}) == POINTS
    assert not set(RETIRED) & set(POINTS.to_dict())


def test_every_field_is_read_by_the_source() -> None:
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    read: set[str] = set()
    folder = Path(ddaebm.model.config.__file__).parent
    for file in folder.rglob("*.py"):
        if file.name != "config.py":  # validating a setting is not using it
            read |= config_reads(file)
    assert fields - read == set()


def config_reads(file: Path) -> set[str]:
    """Names read as an attribute of something called `config`."""
    nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "config"}
