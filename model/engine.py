"""The engine interface, used by the service and the Python API, and the function that creates an engine."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.bundle import Bundle
from ddaebm.model.errors import ConfigError
from ddaebm.model.images.contract import Contract
from ddaebm.model.ood.explain import Explainer
from ddaebm.model.ood.levels import Explained, Scores
from ddaebm.model.ood.scoring import Scorer
from ddaebm.model.runtime import OnnxEngine

BACKENDS = ("onnx", "torch")


class Engine(Protocol):
    """One model on one device.

    Up to `workers` threads may call `sample`, `score` and `explain` at once. Row i of a result depends only on row i of
    the input.
    """

    name: str
    digest: str
    backend: str
    workers: int  # number of concurrent calls that gives the highest throughput
    num_steps: int
    contract: Contract  # the form of images to score
    native: Contract  # the form of samples
    side: int | None  # `Bundle.side`
    scorer: Scorer
    explainer: Explainer
    fit: Mapping[str, Any] | None  # `Bundle.fit`

    def sample(self, seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Sample one image for each seed: int64 (B,) -> uint8 (B, H, W, C)."""

    def score(self, images: NDArray[np.uint8]) -> Scores:
        """Compute energies, OOD scores, p-values and boxes of images (B, H, W, C) that match the contract."""

    def explain(self, images: NDArray[np.uint8]) -> Explained:
        """Compute the results of `score`, and heatmaps."""

    def warm_up(self, max_batch: int) -> None:
        """Run the batch sizes up to `max_batch` that are slow the first time, so that no request waits for them."""


def load_engine(
    bundle: Bundle,
    device: str = "auto",
    backend: str = "onnx",
    threads: int = 1,
    max_batch: int = 64,
    tensorrt_cache: str = "",
) -> Engine:
    """Create the engine of `bundle`.

    Args:
        device: "auto", "cpu", "cuda", or with the backend "onnx" also "tensorrt".
        backend: "onnx" or "torch".
        threads: CPU threads of one call.
        max_batch: Largest batch that the torch engine computes at once.
        tensorrt_cache: Folder for TensorRT engines; the default is in the user's cache folder.

    Raises:
        BundleError: The graphs or weights of the bundle cannot be loaded.
        ConfigError: The backend or device is unknown, not available or not installed.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    if backend == "onnx":
        return OnnxEngine(bundle, device, threads, tensorrt_cache)
    try:
        from ddaebm.model.nets.torch_engine import TorchEngine
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"backend=torch needs {error.name}, which is not installed: pip install -c constraints.txt '.[torch]'"
        ) from error
    return TorchEngine(bundle, device, threads, max_batch)
