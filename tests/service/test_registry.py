"""Engines on a real, tiny bundle, and how the cores are shared among the workers."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddaebm.model.bundle import load_bundle
from ddaebm.model.engine import Engine, load_engine
from ddaebm.model.errors import ConfigError
from ddaebm.model.noise import image_seeds
from ddaebm.model.runtime import OnnxEngine
from ddaebm.service.registry import plan_workers
from ddaebm.service.settings import Settings


@pytest.fixture(scope="module")
def onnx_engine(debug_bundle: Path) -> Engine:
    return load_engine(load_bundle(debug_bundle), "cpu")


def test_the_engine_says_what_its_bundle_says(onnx_engine: Engine, debug_bundle: Path) -> None:
    manifest = json.loads((debug_bundle / "bundle.json").read_text())
    assert isinstance(onnx_engine, OnnxEngine)
    assert onnx_engine.name == manifest["name"] == "debug"
    assert onnx_engine.num_steps == manifest["model"]["num_steps"]
    assert onnx_engine.contract.shape == (16, 16, 1)
    assert onnx_engine.backend == "onnxruntime-cpu"
    assert len(onnx_engine.digest) == 64
    assert len(onnx_engine.scorer.calibration_scores) == 250


def test_an_image_depends_on_its_seed_and_on_nothing_else_in_its_batch(onnx_engine: Engine) -> None:
    seeds = image_seeds(5, 7)
    batch = onnx_engine.sample(seeds)
    assert (batch.shape, batch.dtype) == ((7, 16, 16, 1), np.uint8)
    assert len({image.tobytes() for image in batch}) == 7
    for i in (0, 3, 6):
        assert (onnx_engine.sample(seeds[i : i + 1])[0] == batch[i]).all()
    assert (onnx_engine.sample(seeds[::-1]) == batch[::-1]).all()


def test_scores_belong_to_their_rows(onnx_engine: Engine) -> None:
    images = np.random.default_rng(0).integers(256, size=(5, 16, 16, 1), dtype=np.uint8)
    whole, turned = onnx_engine.score(images), onnx_engine.score(images[::-1])
    assert whole.energies.shape == (5, 4)
    for rows, reverse in zip(whole, turned, strict=True):
        np.testing.assert_allclose(rows, reverse[::-1], rtol=1e-4)
    np.testing.assert_array_equal(whole.p_value, onnx_engine.scorer.p_value(whole.ood_score))
    alone = onnx_engine.score(images[2:3])
    np.testing.assert_allclose(alone.ood_score, whole.ood_score[2:3], rtol=1e-4)


def test_noise_scores_above_what_the_calibration_has_seen(onnx_engine: Engine) -> None:
    noise = np.random.default_rng(0).integers(256, size=(8, 16, 16, 1), dtype=np.uint8)
    assert (onnx_engine.score(noise).p_value <= 0.05).all()


def test_warming_up_at_a_batch_of_one_works(onnx_engine: Engine) -> None:
    onnx_engine.warm_up(1)


@pytest.mark.parametrize("missing", ["torch", "safetensors"])
def test_a_backend_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, debug_bundle: Path, missing: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "safetensors"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("torch_engine", "weights"):
        monkeypatch.delitem(sys.modules, f"ddaebm.model.nets.{name}", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=rf"backend=torch needs {missing}.*\[torch\]"):
        load_engine(load_bundle(debug_bundle), backend="torch")


@pytest.mark.parametrize(
    ("cores", "settings", "plan"),
    [(4, {}, (4, 1)), (4, {"workers": 2}, (2, 2)), (4, {"workers": 3}, (3, 1)), (4, {"threads": 3}, (4, 3)),
     (1, {}, (1, 1)), (4, {"workers": 1}, (1, 4)), (4, {"backend": "torch"}, (1, 0)),
     (4, {"backend": "torch", "threads": 2}, (1, 2))],
)  # fmt: skip
def test_the_cores_are_shared_among_the_workers(
    monkeypatch: pytest.MonkeyPatch, cores: int, settings: dict[str, Any], plan: tuple[int, int]
) -> None:
    monkeypatch.setattr("ddaebm.service.registry.usable_cores", lambda: cores)
    assert plan_workers(Settings(**{"device": "cpu", **settings})) == plan


def test_torch_takes_one_inference_at_a_time() -> None:
    with pytest.raises(ConfigError, match="workers=2"):
        plan_workers(Settings(backend="torch", workers=2))


def test_a_gpu_gets_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddaebm.service.registry.choose_providers", lambda device: ["CUDAExecutionProvider"])
    assert plan_workers(Settings())[0] == 1


def test_inferences_at_the_same_time_do_not_disturb_each_other(onnx_engine: Engine) -> None:
    seeds = image_seeds(1, 40)
    whole = onnx_engine.sample(seeds)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda start: onnx_engine.sample(seeds[start : start + 2]), range(0, 40, 2)))
    assert (np.concatenate(parts) == whole).all()
