"""The ONNX Runtime engine on a real, tiny bundle."""

import json
from pathlib import Path

import numpy as np
import pytest

from model.noise import image_seeds
from service.app import load_engines
from service.engine import Engine, OnnxEngine
from service.settings import Settings


@pytest.fixture(scope="module")
def onnx_engine(debug_bundle: Path) -> Engine:
    (engine,) = load_engines(Settings(bundle=(str(debug_bundle),), device="cpu", threads=1)).values()
    return engine


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
    (batch,) = onnx_engine.sample(seeds)
    assert (batch.shape, batch.dtype) == ((7, 16, 16, 1), np.uint8)
    assert len({image.tobytes() for image in batch}) == 7
    for i in (0, 3, 6):
        assert (onnx_engine.sample(seeds[i : i + 1]).images[0] == batch[i]).all()
    assert (onnx_engine.sample(seeds[::-1]).images == batch[::-1]).all()


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
