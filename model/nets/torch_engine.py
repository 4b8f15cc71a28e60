"""Engine that runs a bundle with torch: noise, reverse process and energies are all computed on the device.

Only `model.engine.load_engine` imports this module, for backend=torch. Batches are padded to a few sizes. `warm_up`
runs each size once, so that no request waits for the first run of a size. On CUDA each size is captured as a CUDA
graph, which replaces thousands of kernel launches by one.
"""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddaebm.model.bundle import Bundle
from ddaebm.model.images.decode import bring
from ddaebm.model.nets.device import choose_device
from ddaebm.model.nets.graphs import EnergyGraph, PlacesGraph, SamplerGraph
from ddaebm.model.nets.weights import load_networks
from ddaebm.model.noise import image_seeds
from ddaebm.model.ood.dense import Dense
from ddaebm.model.ood.levels import Explained, LevelStatistics, Scores, explain_levels, score_levels
from ddaebm.model.ood.masks import masked, without
from ddaebm.model.parallel import weight_of
from ddaebm.model.sampling import draw_noise

Compute: TypeAlias = Callable[[Tensor], tuple[Tensor, ...]]  # output row i depends only on input row i


class TorchEngine:
    """Runs the safetensors weights of a bundle with torch; implements `model.engine.Engine`.

    Args:
        device: "auto", "cpu" or "cuda".
        threads: CPU threads of torch; 0 keeps torch's default.
        max_batch: Largest batch that is computed at once. Larger inputs are split.
        cuda_graphs: False launches each operation separately on CUDA, as on the CPU.

    Raises:
        BundleError: The weights are missing, or belong to another network.
        ConfigError: The device is unknown or not available.
    """

    def __init__(
        self, bundle: Bundle, device: str = "auto", threads: int = 0, max_batch: int = 64, cuda_graphs: bool = True
    ) -> None:
        self.device = choose_device(device)
        if threads:
            torch.set_num_threads(threads)
        self.name = bundle.name
        self.digest = bundle.digest
        self.workers = 1
        self.backend = f"torch-{self.device.type}"
        self.num_steps = bundle.config.num_steps
        self.contract, self.native, self.side = bundle.contract, bundle.native, bundle.side
        self.scorer = bundle.scorer
        self.explainer = bundle.explainer
        self.fit = bundle.fit
        self._config = bundle.config
        generator, energy_net = load_networks(bundle, self.device)
        self._sampler = SamplerGraph(generator, bundle.config).to(self.device)
        self._energy = EnergyGraph(energy_net, bundle.config).to(self.device)
        self._places = PlacesGraph(energy_net, bundle.config).to(self.device)
        self._dense = bundle.explainer.spots if isinstance(bundle.explainer.spots, Dense) else None
        self._sizes = ladder(max_batch)
        self._graphs = None
        self._lock = threading.Lock()  # a CUDA graph has a single set of input and output buffers
        if self.device.type == "cuda":
            # The calibration scores were computed in full precision, so the scores of images must be too.
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
            self._graphs = CudaGraphs(self.device) if cuda_graphs else None

    def sample(self, seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
        (images,) = self._run(self._sample, seeds)
        return images

    def score(self, images: NDArray[np.uint8]) -> Scores:
        return score_levels(self.scorer, self.explainer, images, self._level_statistics(images))

    def explain(self, images: NDArray[np.uint8]) -> Explained:
        return explain_levels(self.scorer, self.explainer, images, self._level_statistics(images))

    def warm_up(self, max_batch: int) -> None:
        for batch in reversed(
            ladder(max(1, max_batch // weight_of(self.side)))
        ):  # the largest first, so that smaller ones reuse its memory
            self.score(bring(self.sample(image_seeds(0, batch)), self.contract))

    def _level_statistics(self, images: NDArray[np.uint8]) -> LevelStatistics:
        if self._dense is None:
            return LevelStatistics(*self._run(self._energy, images))
        images, counts = masked(images, self._dense.region)
        native = bring(images, self.native)
        (outputs,) = self._run(self._places_of, images)
        found = LevelStatistics(*self._run(self._energy, native))
        return found._replace(native=native, places=without(self._dense.basis.project(outputs), counts))

    def _sample(self, seeds: Tensor) -> tuple[Tensor, ...]:
        return (self._sampler(*draw_noise(self._config, seeds)),)

    def _places_of(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self._places(images),)

    @torch.inference_mode()
    def _run(self, compute: Compute, rows: NDArray[Any]) -> list[NDArray[Any]]:
        """Call `compute` on rows (B, ...) in batches padded to the sizes of `ladder`."""
        top = self._sizes[-1]
        with self._lock, self._graphs.on_stream() if self._graphs else nullcontext():
            parts = [self._run_padded(compute, rows[start : start + top]) for start in range(0, len(rows), top)]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _run_padded(self, compute: Compute, rows: NDArray[Any]) -> list[NDArray[Any]]:
        size = next(size for size in self._sizes if size >= len(rows))
        padded = np.zeros((size, *rows.shape[1:]), rows.dtype)
        padded[: len(rows)] = rows
        on_host = torch.from_numpy(padded)
        outputs = self._graphs.run(compute, on_host) if self._graphs else compute(on_host.to(self.device))
        return [output[: len(rows)].cpu().numpy() for output in outputs]


class CudaGraphs:
    """Captures a computation on the first call with each batch size, and replays it on later calls.

    All work runs on one dedicated stream, for three reasons: capture is not allowed on the default stream; the
    current stream is a setting of each thread, and warm-up and serving run in different threads; graphs that share
    memory must not overlap.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[tuple[Compute, int], tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]] = {}
        torch.cuda.synchronize(device)  # the weights were copied on the default stream

    def on_stream(self) -> torch.cuda.StreamContext:
        """Return a context manager that makes the stream and its device current in this thread."""
        return torch.cuda.stream(self._stream)

    def run(self, compute: Compute, rows: Tensor) -> tuple[Tensor, ...]:
        """Call `compute` on rows from the host, inside `on_stream`. The next call overwrites the results."""
        key = compute, len(rows)
        if key not in self._captured:
            self._captured[key] = self._capture(compute, rows)
        graph, inputs, outputs = self._captured[key]
        inputs.copy_(rows)
        graph.replay()
        return outputs

    def _capture(self, compute: Compute, rows: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]:
        inputs = rows.to(self._stream.device)
        for _ in range(3):  # the first calls choose algorithms and allocate workspaces, which cannot be captured
            compute(inputs)
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # "thread_local": GPU work of other threads, for other bundles, must not invalidate this capture.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            outputs = compute(inputs)
        return graph, inputs, outputs


def ladder(max_batch: int) -> list[int]:
    """The sizes to which batches are padded, ascending: the powers of two below `max_batch`, and `max_batch`."""
    return sorted({*(2**i for i in range(max_batch.bit_length())), max_batch})
