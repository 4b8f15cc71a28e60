"""A real bundle on ONNX Runtime: results do not depend on the batch, and equal those of torch."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import ddaebm.model.sessions
from ddaebm.model.bundle import load_bundle
from ddaebm.model.errors import BundleError, ConfigError
from ddaebm.model.nets.graphs import to_pixels
from ddaebm.model.ood.complexity import complexity
from ddaebm.model.ood.tails import join
from ddaebm.model.runtime import OnnxEngine
from ddaebm.model.schedule import make_schedule
from ddaebm.model.sessions import choose_providers, engine_cache
from ddaebm.training.data import load_data, split, to_tensor
from ddaebm.training.export import load_run
from ddaebm.training.trainer import generate

Forge = Callable[..., Path]
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
GPU_BUILD = [TENSORRT, CUDA, CPU]  # the providers that onnxruntime-gpu lists on any machine


@pytest.fixture(scope="module")
def runtime(debug_bundle: Path) -> OnnxEngine:
    return OnnxEngine(load_bundle(debug_bundle), device="cpu", threads=1)


@pytest.mark.parametrize(
    ("device", "available", "chosen"),
    [
        ("auto", [CPU], [CPU]),
        ("auto", [CUDA, CPU], [CUDA, CPU]),
        ("cpu", [CPU], [CPU]),
        ("cpu", [CUDA, CPU], [CPU]),
        ("cuda", [CUDA, CPU], [CUDA, CPU]),
        ("auto", GPU_BUILD, [CUDA, CPU]),
        ("cuda", GPU_BUILD, [CUDA, CPU]),
        ("cpu", GPU_BUILD, [CPU]),
        ("tensorrt", GPU_BUILD, [TENSORRT, CUDA, CPU]),
    ],
)
def test_providers(device: str, available: list[str], chosen: list[str]) -> None:
    assert choose_providers(device, available) == chosen


@pytest.mark.parametrize(
    ("device", "available", "message"),
    [
        ("cuda", [CPU], "no CUDAExecutionProvider; install the gpu extra"),
        ("tensorrt", [CUDA, CPU], "no TensorrtExecutionProvider"),
        ("tpu", GPU_BUILD, "auto, cpu, cuda, tensorrt, not 'tpu'"),
    ],
)
def test_a_device_that_cannot_be_had_is_refused(device: str, available: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_providers(device, available)


class FakeSession:
    """A fake session that records its arguments and reports the provider `running`."""

    running = CUDA
    fault: Exception | None = None

    def get_inputs(self) -> list[Any]:
        return []

    get_outputs = get_inputs

    def __init__(self, graph: bytes, options: Any, providers: list[tuple[str, dict[str, str]]], **others: Any) -> None:
        self.graph, self.chosen, self.others = graph, providers, others
        if self.fault:
            raise self.fault

    def get_providers(self) -> list[str]:
        return [self.running, CPU]


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> type[FakeSession]:
    """onnxruntime-gpu, with sessions of this class."""

    class Session(FakeSession):
        pass

    monkeypatch.setattr(ddaebm.model.sessions, "Session", Session)
    monkeypatch.setattr(ddaebm.model.sessions.ort, "get_available_providers", lambda: GPU_BUILD)
    monkeypatch.setattr(ddaebm.model.sessions.ort, "preload_dlls", lambda: print("a library is missing"))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")  # monkeypatch then restores the value after the test
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    ddaebm.model.sessions.load_cuda.cache_clear()
    return Session


def test_cuda_computes_in_full_precision_and_falls_back_to_nothing(
    gpu_build: type[FakeSession], debug_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made: Any = OnnxEngine(load_bundle(debug_bundle), "auto")
    for name, session in (("sampler.onnx", made.sampler), ("energy.onnx", made.energy)):
        assert session.graph == (debug_bundle / name).read_bytes()
    for session in (made.sampler, made.energy):
        (cuda, options), cpu = session.chosen
        assert (cuda, cpu) == (CUDA, (CPU, {}))
        assert options["use_tf32"] == "0"
        assert session.others == {"enable_fallback": 0}
    assert capsys.readouterr() == ("", "a library is missing\n")


def test_the_cpu_needs_none_of_cuda_s_libraries(
    gpu_build: type[FakeSession], debug_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu_build.running = CPU
    made: Any = OnnxEngine(load_bundle(debug_bundle), "cpu")
    assert made.sampler.chosen == [(CPU, {})]
    assert capsys.readouterr() == ("", "")


def test_tensorrt_computes_in_full_precision_and_keeps_its_engines(
    gpu_build: type[FakeSession], debug_bundle: Path, tmp_path: Path
) -> None:
    gpu_build.running = TENSORRT
    made: Any = OnnxEngine(load_bundle(debug_bundle), "tensorrt", tensorrt_cache=str(tmp_path / "a" / "b"))
    assert [provider for provider, _ in made.energy.chosen] == [TENSORRT, CUDA, CPU]
    options = made.energy.chosen[0][1]
    assert options["trt_fp16_enable"] == "0"
    assert options["trt_engine_cache_enable"] == "1"
    folder = tmp_path / "a" / "b" / made.bundle.digest  # ONNX Runtime names engines without regard to weights
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(folder)
    assert folder.is_dir()
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


@pytest.mark.parametrize("device", ["auto", "cuda", "tensorrt"])
def test_a_gpu_that_fails_to_start_is_an_error_and_not_the_cpu(
    gpu_build: type[FakeSession], debug_bundle: Path, tmp_path: Path, device: str
) -> None:
    gpu_build.running = CPU  # ONNX Runtime falls back to the CPU if a library is missing, and only logs it
    with pytest.raises(ConfigError, match=r"failed to start.*device=cpu"):
        OnnxEngine(load_bundle(debug_bundle), device, tensorrt_cache=str(tmp_path))
    gpu_build.fault = RuntimeError("no CUDA-capable device is detected")
    with pytest.raises(ConfigError, match=r"no CUDA-capable device.*device=cpu"):
        OnnxEngine(load_bundle(debug_bundle), device, tensorrt_cache=str(tmp_path))


def test_engines_are_kept_with_the_user_s_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert engine_cache("0f") == tmp_path / "caches" / "ddaebm" / "tensorrt" / "0f"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert engine_cache("0f") == tmp_path / "home" / ".cache" / "ddaebm" / "tensorrt" / "0f"


def test_engines_that_cannot_be_kept_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="set DDAEBM_TENSORRT_CACHE to a writable folder"):
        engine_cache("0f", str(tmp_path / "file" / "engines"))


def test_a_seed_gives_the_same_bytes_in_any_batch(runtime: OnnxEngine) -> None:
    seeds = np.array([3, 2**40 + 1, 0, 17, 5, 99, 2**53 - 1], dtype=np.int64)
    images = runtime.sample(seeds)
    assert images.shape == (7, 16, 16, 1)
    assert images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 7
    np.testing.assert_array_equal(runtime.sample(seeds[::-1].copy())[::-1], images)
    for i in range(7):
        np.testing.assert_array_equal(runtime.sample(seeds[i : i + 1])[0], images[i])
        np.testing.assert_array_equal(runtime.sample(np.repeat(seeds[i], 4))[3], images[i])


def test_sampler_is_within_one_grey_level_of_torch(runtime: OnnxEngine, debug_run: Path) -> None:
    config, state = load_run(debug_run)
    seeds = np.arange(40, dtype=np.int64)
    expected = to_pixels(generate(config, state.generator_ema, seeds)).numpy().astype(int)
    assert np.abs(runtime.sample(seeds).astype(int) - expected).max() <= 1


def test_level_statistics_are_the_noiseless_energies_of_torch(runtime: OnnxEngine, debug_run: Path) -> None:
    config, state = load_run(debug_run)
    images = load_data("shapes", config.network)[:6]
    levels = runtime.level_statistics(images)
    assert levels.energy_map.shape == (6, 4, 16, 16)
    np.testing.assert_allclose(levels.energy_map.sum((2, 3)), levels.energies, rtol=1e-4)
    alpha_bar = make_schedule(config.network).alpha_bar
    for k in range(4):
        with torch.no_grad():
            expected = state.energy_net_ema.levels(alpha_bar[k] ** 0.5 * to_tensor(images), torch.full((6,), k))
        np.testing.assert_allclose(levels.energies[:, k], expected.energies, rtol=1e-4)
        np.testing.assert_allclose(levels.features[:, k], expected.features, rtol=1e-3, atol=1e-4)


def test_scores_do_not_depend_on_the_batch(runtime: OnnxEngine) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 1), dtype=np.uint8)
    whole = runtime.score(images)
    for i in range(5):
        alone = runtime.score(images[i : i + 1])
        np.testing.assert_allclose(alone.ood_score, whole.ood_score[i : i + 1], rtol=1e-4)
        np.testing.assert_array_equal(alone.p_value, whole.p_value[i : i + 1])


def test_score_is_the_bundle_s_scorer_on_the_level_statistics(runtime: OnnxEngine) -> None:
    images = np.random.default_rng(1).integers(0, 256, (4, 16, 16, 1), dtype=np.uint8)
    scores, levels, scorer = runtime.score(images), runtime.level_statistics(images), runtime.bundle.scorer
    of_pixels = runtime.explainer.pixels.statistics(levels.energy_map)
    rows = np.hstack(
        [np.log(levels.energies.astype(float)), levels.features.reshape(4, -1), of_pixels, complexity(images)]
    )
    hottest = runtime.explainer.heatmaps(images, levels.energy_map).max((1, 2))[:, None]
    np.testing.assert_allclose(scores.ood_score, join(scorer.parts(rows, hottest)))
    calibration = scorer.calibration_scores
    expected = [(1 + (calibration >= s).sum()) / (len(calibration) + 1) for s in scores.ood_score]
    np.testing.assert_allclose(scores.p_value, expected)


def test_a_few_bad_pixels_raise_the_score(runtime: OnnxEngine) -> None:
    images = split(load_data("shapes", runtime.bundle.config)).choice[:60]
    bad = images.copy()
    rows, columns = np.random.default_rng(3).integers(0, 16, (2, 60, 3))
    for image, y, x in zip(bad, rows, columns, strict=True):
        image[y, x] = 255 - image[y, x]
    before, after = runtime.score(images), runtime.score(bad)
    assert (after.ood_score > before.ood_score).mean() > 0.85
    assert np.median(after.p_value) < np.median(before.p_value) / 3


def test_calibration_images_score_as_the_bundle_recorded(runtime: OnnxEngine) -> None:
    """Scores of the calibration images equal the stored ones, so serving and calibration use the same code path."""
    config = runtime.bundle.config
    calibration = split(load_data("shapes", config)).calibration
    scores = np.sort(runtime.score(calibration).ood_score)
    np.testing.assert_allclose(scores, runtime.bundle.scorer.calibration_scores, rtol=1e-3)


def test_noise_is_told_from_the_training_images(runtime: OnnxEngine) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (50, 16, 16, 1), dtype=np.uint8)
    assert (runtime.score(noise).p_value == runtime.bundle.scorer.smallest_p).all()
    shapes = split(load_data("shapes", runtime.bundle.config)).choice  # not used for calibration
    assert (runtime.score(shapes).p_value <= 0.1).mean() < 0.25


@pytest.mark.parametrize("name", ["sampler.onnx", "energy.onnx"])
def test_a_graph_that_is_none_is_a_bundle_error(forge: Forge, name: str) -> None:
    copy = forge({name: b"not a graph"})
    with pytest.raises(BundleError, match="ONNX Runtime cannot load"):
        OnnxEngine(load_bundle(copy), device="cpu")


def test_a_graph_without_its_weights_is_a_bundle_error(forge: Forge) -> None:
    copy = forge({"energy_net.safetensors": b"cut"})
    with pytest.raises(BundleError, match=r"ONNX Runtime cannot load energy\.onnx"):
        OnnxEngine(load_bundle(copy), device="cpu")


def test_a_graph_reads_no_other_file_than_its_weights(debug_bundle: Path, forge: Forge, tmp_path: Path) -> None:
    secret = Path(shutil.copy(debug_bundle / "energy_net.safetensors", tmp_path / "secret"))
    for place in (str(secret), f"../{secret.name}", "generator.safetensors"):
        graph = onnx.load(debug_bundle / "energy.onnx", load_external_data=False)
        for entry in [e for tensor in graph.graph.initializer for e in tensor.external_data if e.key == "location"]:
            entry.value = place
        copy = forge({"energy.onnx": graph.SerializeToString()})
        with pytest.raises(BundleError, match=r"cannot load energy\.onnx .* not found"):
            OnnxEngine(load_bundle(copy), device="cpu")


def test_onnx_runtime_keeps_no_record_of_its_use(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    subprocess.run(
        [sys.executable, "-c", "import ddaebm.model.runtime"], env={**env, "HOME": str(tmp_path)}, check=True
    )
    assert [path.name for path in tmp_path.rglob("*")] == []
