"""The engine interface that the service and the Python API are written against, and the choice of an engine."""

from typing import Protocol

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
    """One model on one device. `workers` calls of `sample`, `score` and `explain` may run at a time.

    Row i of the result depends on row i of the input and on nothing else.
    """

    name: str
    digest: str
    backend: str
    workers: int  # calls at a time that make it faster
    num_steps: int
    contract: Contract
    scorer: Scorer
    explainer: Explainer

    def sample(self, seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
        """One image for each seed, (B, H, W, C)."""

    def score(self, images: NDArray[np.uint8]) -> Scores:
        """Energies, OOD score and p-value of images (B, H, W, C) in the contract's form."""

    def explain(self, images: NDArray[np.uint8]) -> Explained:
        """`score`, and the energy of each pixel at each level."""

    def warm_up(self, max_batch: int) -> None:
        """Run each batch size that the first request could otherwise wait for."""


def load_engine(
    bundle: Bundle,
    device: str = "auto",
    backend: str = "onnx",
    threads: int = 1,
    max_batch: int = 64,
    tensorrt_cache: str = "",
) -> Engine:
    """The engine of `bundle` for a backend ("onnx" or "torch") and device ("auto", "cpu", "cuda", "tensorrt").

    Raises:
        BundleError: the bundle's graphs or weights cannot be loaded.
        ConfigError: there is no such backend or device, or it is not installed.
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
