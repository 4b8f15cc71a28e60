"""What computes: a protocol that the service is written against, its ONNX Runtime form, and the choice of one."""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.bundle import Bundle
from ddaebm.model.errors import ConfigError
from ddaebm.model.explain import Explainer
from ddaebm.model.images import Contract
from ddaebm.model.noise import image_seeds
from ddaebm.model.parallel import usable_cores
from ddaebm.model.runtime import CPU, BundleRuntime, Explained, Scores, choose_providers
from ddaebm.model.scoring import Scorer
from ddaebm.service.settings import Settings


class Samples(NamedTuple):
    images: NDArray[np.uint8]  # (B, H, W, C)


class Engine(Protocol):
    """One model on one device. `sample`, `score` and `explain` run on the inference threads alone, as many at a time as
    `plan_workers` says.

    Row i of what they return depends on row i of what they are given, and on nothing else.
    """

    name: str
    digest: str
    backend: str
    num_steps: int
    contract: Contract
    scorer: Scorer
    explainer: Explainer

    def sample(self, seeds: NDArray[np.int64]) -> Samples:
        """One image a seed."""

    def score(self, images: NDArray[np.uint8]) -> Scores:
        """Energies, OOD score and p-value of images (B, H, W, C) in the contract's form."""

    def explain(self, images: NDArray[np.uint8]) -> Explained:
        """`score`, and the energy of each pixel at each level."""

    def warm_up(self, max_batch: int) -> None:
        """Run what the first request would otherwise wait for."""


class OnnxEngine:
    """A bundle on ONNX Runtime."""

    def __init__(self, bundle: Bundle, device: str = "auto", threads: int = 0, tensorrt_cache: str = "") -> None:
        self.runtime = BundleRuntime(bundle, device, threads, tensorrt_cache)
        self.name = bundle.name
        self.digest = bundle.digest
        self.backend = "onnxruntime-" + self.runtime.providers[0].removesuffix("ExecutionProvider").lower()
        self.num_steps = bundle.config.num_steps
        self.contract = bundle.contract
        self.scorer = bundle.scorer
        self.explainer = bundle.explainer

    def sample(self, seeds: NDArray[np.int64]) -> Samples:
        return Samples(self.runtime.sample(seeds))

    def score(self, images: NDArray[np.uint8]) -> Scores:
        return self.runtime.score(images)

    def explain(self, images: NDArray[np.uint8]) -> Explained:
        return self.runtime.explain(images)

    def warm_up(self, max_batch: int) -> None:
        for batch in {1, max_batch}:  # both ends, so that TensorRT builds for every size between them
            self.score(self.sample(image_seeds(0, batch)).images)


def plan_workers(settings: Settings) -> tuple[int, int]:
    """(inferences at a time, threads of each).

    On a CPU one of a single thread for each core (`model.parallel` says why).

    Raises:
        ConfigError: several are asked for where the backend takes one at a time.
    """
    if settings.backend == "torch":
        if settings.workers > 1:
            raise ConfigError(f"workers={settings.workers}: backend=torch runs one inference at a time")
        return 1, settings.threads
    cores = usable_cores()
    workers = settings.workers or (cores if choose_providers(settings.device)[0] == CPU else 1)
    return workers, settings.threads or max(1, cores // workers)


def load_engine(bundle: Bundle, settings: Settings) -> Engine:
    """The engine of `bundle` that `settings` asks for.

    Raises:
        BundleError: the bundle's graphs or weights cannot be loaded.
        ConfigError: the backend is not installed, or the device is not to be had.
    """
    if settings.backend == "onnx":
        return OnnxEngine(bundle, settings.device, plan_workers(settings)[1], settings.tensorrt_cache)
    try:
        from ddaebm.service.torch_engine import TorchEngine  # here, since serving by ONNX Runtime needs no torch
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"backend=torch needs {error.name}, which is not installed: pip install -c constraints.txt -e '.[torch]'"
        ) from error
    return TorchEngine(bundle, settings.device, settings.threads, settings.max_batch)
