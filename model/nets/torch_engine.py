"""A bundle on torch: noise, reverse loop and energies all on the device. Imported only when it is asked for.

A batch is padded up to one of a few sizes, all of which `warm_up` runs, so that no request meets a shape
for the first time. On CUDA each size is a CUDA graph: one launch in place of thousands.
"""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load
from torch import Tensor, nn

from ddaebm.model.bundle import Bundle
from ddaebm.model.errors import BundleError, ConfigError
from ddaebm.model.nets.graphs import EnergyGraph, SamplerGraph
from ddaebm.model.nets.networks import EnergyNet, Generator
from ddaebm.model.noise import image_seeds
from ddaebm.model.ood.levels import Explained, LevelStatistics, Scores, explain_levels
from ddaebm.model.sampling import draw_noise

Compute: TypeAlias = Callable[[Tensor], tuple[Tensor, ...]]  # row i out depends on row i in alone
Net = TypeVar("Net", bound=nn.Module)


class TorchEngine:
    """A bundle's safetensors on torch, for batches of up to `max_batch`; larger ones are taken in turns.

    Args:
        cuda_graphs: false launches each operation by itself on CUDA, as on the CPU.

    Raises:
        BundleError: the weights are missing, or not those of the bundle's networks.
        ConfigError: the device is not to be had.
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
        self.contract = bundle.contract
        self.scorer = bundle.scorer
        self.explainer = bundle.explainer
        self._pixels = bundle.pixels
        self._config = bundle.config
        generator = _load(Generator(bundle.config), bundle, "generator.safetensors")
        energy_net = _load(EnergyNet(bundle.config), bundle, "energy_net.safetensors")
        self._sampler = SamplerGraph(generator, bundle.config).to(self.device)
        self._energy = EnergyGraph(energy_net, bundle.config).to(self.device)
        self._sizes = ladder(max_batch)
        self._graphs = None
        self._lock = threading.Lock()  # a CUDA graph has one set of input and output buffers
        if self.device.type == "cuda":
            # Scores are compared with a calibration that was computed in full precision.
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
            self._graphs = CudaGraphs(self.device) if cuda_graphs else None

    def sample(self, seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
        (images,) = self._run(self._sample, seeds)
        return images

    def score(self, images: NDArray[np.uint8]) -> Scores:
        return Scores(*self.explain(images)[:3])

    def explain(self, images: NDArray[np.uint8]) -> Explained:
        return explain_levels(self.scorer, self._pixels, images, self._level_statistics(images))

    def warm_up(self, max_batch: int) -> None:
        for batch in reversed(ladder(max_batch)):  # the largest first: the others then fit into its memory
            self.score(self.sample(image_seeds(0, batch)))

    def _level_statistics(self, images: NDArray[np.uint8]) -> LevelStatistics:
        return LevelStatistics(*self._run(self._levels, images))

    def _sample(self, seeds: Tensor) -> tuple[Tensor, ...]:
        return (self._sampler(*draw_noise(self._config, seeds)),)

    def _levels(self, images: Tensor) -> tuple[Tensor, ...]:
        levels: tuple[Tensor, ...] = self._energy(images)
        return levels

    @torch.inference_mode()
    def _run(self, compute: Compute, rows: NDArray[Any]) -> list[NDArray[Any]]:
        """`compute` of rows (B, ...), at the sizes of the ladder."""
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
    """Captures a computation at the first call with each batch size, and replays it from then on.

    All work is on one stream of their own: capture is not allowed on the default stream, a stream is current
    in one thread only (the engine warms up in another than it serves in), and graphs that share memory must
    not overlap.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[tuple[Compute, int], tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]] = {}
        torch.cuda.synchronize(device)  # the weights were copied on the default stream

    def on_stream(self) -> torch.cuda.StreamContext:
        """Makes the stream, and its device, current in this thread."""
        return torch.cuda.stream(self._stream)

    def run(self, compute: Compute, rows: Tensor) -> tuple[Tensor, ...]:
        """`compute` of rows on the host, called under `on_stream`; the next call writes over the results."""
        key = compute, len(rows)
        if key not in self._captured:
            self._captured[key] = self._capture(compute, rows)
        graph, inputs, outputs = self._captured[key]
        inputs.copy_(rows)
        graph.replay()
        return outputs

    def _capture(self, compute: Compute, rows: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]:
        inputs = rows.to(self._stream.device)
        for _ in range(3):  # libraries choose algorithms and allocate workspaces at first, which cannot be captured
            compute(inputs)
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # "thread_local": what other threads do on the GPU meanwhile, for another bundle, is no fault of this capture.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            outputs = compute(inputs)
        return graph, inputs, outputs


def ladder(max_batch: int) -> list[int]:
    """The sizes that batches are padded to, ascending: the powers of two below `max_batch`, and itself."""
    return sorted({*(2**i for i in range(max_batch.bit_length())), max_batch})


def choose_device(device: str) -> torch.device:
    """A torch device for "auto", "cpu" or "cuda".

    Raises:
        ConfigError: it is not to be had.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"backend=torch runs on auto, cpu or cuda, not {device!r}")
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(f"device=cuda, but torch {torch.__version__} finds no GPU; see docs/gpu.md")
    return torch.device("cuda", torch.cuda.current_device())


def _load(net: Net, bundle: Bundle, file: str) -> Net:
    contents = bundle.read(file)
    try:
        net.load_state_dict(load(contents))
    except Exception as error:  # safetensors and torch have no error in common
        raise BundleError(f"{bundle.path / file}: not the weights of this bundle's networks ({error})") from error
    return net.eval().requires_grad_(False)
