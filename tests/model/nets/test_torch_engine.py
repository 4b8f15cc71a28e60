"""The torch engine on the CPU: the same numbers as ONNX Runtime's, and the ladder of batch sizes.

CUDA graphs need a GPU (`make gpu-check`); here a double stands for torch.cuda, to show that each size is
captured once and that its tensors are reused.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ddaebm.model.bundle import load_bundle
from ddaebm.model.errors import BundleError
from ddaebm.model.nets.torch_engine import CudaGraphs, TorchEngine, ladder
from ddaebm.model.noise import image_seeds
from ddaebm.model.runtime import OnnxEngine
from ddaebm.service.registry import load_engines
from ddaebm.service.settings import Settings

SEEDS = image_seeds(3, 23)


@pytest.fixture(scope="module")
def onnx_engine(debug_bundle: Path) -> OnnxEngine:
    return OnnxEngine(load_bundle(debug_bundle), "cpu", threads=1)


@pytest.fixture(scope="module")
def torch_engine(debug_bundle: Path) -> TorchEngine:
    return TorchEngine(load_bundle(debug_bundle), "cpu", threads=1, max_batch=16)


@pytest.fixture(scope="module")
def images(onnx_engine: OnnxEngine) -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).integers(256, size=(6, 16, 16, 1), dtype=np.uint8)
    return np.concatenate([onnx_engine.sample(image_seeds(9, 5)), noise])


@pytest.mark.parametrize(
    ("max_batch", "sizes"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (64, [1, 2, 4, 8, 16, 32, 64])]
)
def test_the_ladder_ends_at_the_largest_batch(max_batch: int, sizes: list[int]) -> None:
    assert ladder(max_batch) == sizes


def test_it_says_of_its_bundle_what_the_other_engine_says(torch_engine: TorchEngine, onnx_engine: OnnxEngine) -> None:
    for name in ("name", "digest", "num_steps", "contract"):
        assert getattr(torch_engine, name) == getattr(onnx_engine, name)
    assert torch_engine.backend == "torch-cpu"


def test_samples_are_within_a_grey_level_of_onnx(torch_engine: TorchEngine, onnx_engine: OnnxEngine) -> None:
    ours, theirs = torch_engine.sample(SEEDS), onnx_engine.sample(SEEDS)
    assert (ours.dtype, ours.shape) == (np.uint8, (23, 16, 16, 1))
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_scores_are_those_of_onnx(
    torch_engine: TorchEngine, onnx_engine: OnnxEngine, images: NDArray[np.uint8]
) -> None:
    ours, theirs = torch_engine.score(images), onnx_engine.score(images)
    np.testing.assert_allclose(ours.energies, theirs.energies, rtol=1e-4)
    np.testing.assert_allclose(ours.ood_score, theirs.ood_score, rtol=1e-3)
    np.testing.assert_allclose(ours.p_value, theirs.p_value, atol=1 / 250)


def test_what_is_explained_is_what_is_scored(torch_engine: TorchEngine, images: NDArray[np.uint8]) -> None:
    *scores, heat = torch_engine.explain(images)
    for actual, expected in zip(scores, torch_engine.score(images), strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert heat.shape == images.shape[:3]


def test_level_statistics_are_those_of_onnx(
    torch_engine: TorchEngine, onnx_engine: OnnxEngine, images: NDArray[np.uint8]
) -> None:
    ours, theirs = torch_engine._level_statistics(images), onnx_engine.level_statistics(images)
    for name in ("energies", "energy_map", "features"):
        assert getattr(ours, name).shape == getattr(theirs, name).shape
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3, 5, 16])
def test_a_row_depends_neither_on_its_neighbours_nor_on_the_padding(
    torch_engine: TorchEngine, images: NDArray[np.uint8], count: int
) -> None:
    whole = torch_engine.sample(SEEDS).astype(int)
    assert np.abs(torch_engine.sample(SEEDS[::-1][:count]) - whole[::-1][:count]).max() <= 1
    energies = torch_engine.score(images).energies
    np.testing.assert_allclose(torch_engine.score(images[::-1][:count]).energies, energies[::-1][:count], rtol=1e-4)


def test_the_networks_see_no_size_that_warming_up_has_not_run(debug_bundle: Path) -> None:
    engine, sizes = TorchEngine(load_bundle(debug_bundle), "cpu", max_batch=6), []
    engine._sampler.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    engine.warm_up(6)
    warm = set(sizes)
    for count in range(1, 14):
        assert len(engine.sample(SEEDS[:count])) == count
    assert warm == set(sizes) == {1, 2, 4, 6}


def test_the_settings_choose_the_engine(debug_bundle: Path) -> None:
    settings = Settings(bundle=(str(debug_bundle),), backend="torch", device="cpu", max_batch=3)
    (engine,) = load_engines(settings).values()
    assert isinstance(engine, TorchEngine)
    assert engine._sizes == [1, 2, 3]


def test_weights_of_other_networks_are_refused(debug_bundle: Path, forge: Callable[..., Path]) -> None:
    others = (debug_bundle / "energy_net.safetensors").read_bytes()
    for contents in (others, b"no weights"):
        with pytest.raises(BundleError, match="not the weights of this bundle's networks"):
            TorchEngine(load_bundle(forge({"generator.safetensors": contents})), "cpu")


class Doubler:
    """Like a captured graph, it reads the input buffer and writes the output buffer of the captured call."""

    def __init__(self) -> None:
        self.calls = 0
        self.places: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.calls += 1
        self.places[len(rows)] = rows, 2 * rows
        return (self.places[len(rows)][1],)


def test_each_size_is_captured_once_and_replayed_with_new_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    double, captured = Doubler(), []

    class Stream:
        device = torch.device("cpu")

        def synchronize(self) -> None:
            pass

    class Graph:
        size = 0

        def replay(self) -> None:
            inputs, outputs = double.places[self.size]
            outputs.copy_(2 * inputs)

    @contextmanager
    def capture(graph: Graph, pool: object, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        assert (pool, capture_error_mode) == ("pool", "thread_local")
        yield
        graph.size = max(double.places)
        captured.append(graph.size)

    fakes: dict[str, Any] = {
        "Stream": lambda _device: Stream(), "graph_pool_handle": lambda: "pool", "synchronize": lambda _device: None,
        "CUDAGraph": Graph, "graph": capture,
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    graphs = CudaGraphs(torch.device("cpu"))
    for values in ([1, 2], [3, 4], [5, 6, 7], [8, 9]):
        (result,) = graphs.run(double, torch.tensor(values))
        assert result.tolist() == [2 * value for value in values]
    assert captured == [2, 3]
    assert double.calls == 2 * 4  # each size: three warm-up calls and the captured call
