"""A bundle on ONNX Runtime: seeds to images, images to energies. No torch.

Used by the service, the command line, calibration, and export's parity gate, so that all of them
compute the same numbers.
"""

import functools
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

# Official builds report usage to their maker unless told not to before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort
from numpy.typing import NDArray

from ddaebm.model.bundle import WEIGHTS, Bundle
from ddaebm.model.config import ModelConfig
from ddaebm.model.errors import BundleError, ConfigError
from ddaebm.model.images.arrays import from_unit
from ddaebm.model.noise import image_seeds
from ddaebm.model.ood.levels import Explained, LevelStatistics, Scores, explain_levels
from ddaebm.model.parallel import usable_cores
from ddaebm.model.sampling import draw_noise
from ddaebm.model.sampling import sample as run_steps
from ddaebm.model.schedule import make_schedule

Session: TypeAlias = ort.InferenceSession
StepCallback: TypeAlias = Callable[[int, NDArray[np.float32], NDArray[np.float32]], object]

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_PROVIDERS = {"auto": [CUDA, CPU], "cpu": [CPU], "cuda": [CUDA, CPU], "tensorrt": [TENSORRT, CUDA, CPU]}
# Images of one call on a CPU. With more a core's cache does not hold what one layer of the energy network, which makes
# T of each, hands to the next, and the sampler takes twice the memory for no gain (docs/performance.md).
_CACHED_ROWS = 16
_GPU_EXTRA = "install the extra gpu in place of cpu (docs/gpu.md)"


def choose_providers(device: str, available: Sequence[str] | None = None) -> list[str]:
    """ONNX Runtime execution providers for "auto", "cpu", "cuda" or "tensorrt", the wanted one first.

    Raises:
        ConfigError: this build of ONNX Runtime does not have the one asked for.
    """
    available = ort.get_available_providers() if available is None else available
    if device not in _PROVIDERS:
        raise ConfigError(f"device must be one of {', '.join(_PROVIDERS)}, not {device!r}")
    wanted = _PROVIDERS[device]
    if device != "auto" and wanted[0] not in available:
        raise ConfigError(f"device={device}, but this onnxruntime has no {wanted[0]}; {_GPU_EXTRA}")
    return [provider for provider in wanted if provider in available]


def provider_options(provider: str, cache: Path | None = None) -> dict[str, str]:
    """How a provider is set up; `cache` is the folder of TensorRT's engines.

    TensorRT gets no explicit profile of batch sizes. It would have to name the inputs of every part of the
    graph that TensorRT takes, and those are not the graph's own: the energy graph begins with integers, which
    it leaves to CUDA. So it builds for the sizes that it has seen, which are the smallest and the largest once
    the engine is warm.
    """
    if provider == CUDA:
        return {
            "use_tf32": "0",  # scores are compared with a calibration that was computed in full precision
            "cudnn_conv_algo_search": "HEURISTIC",  # the default times every algorithm at each new batch size
            "arena_extend_strategy": "kSameAsRequested",  # the default doubles what it takes of the card
        }
    if provider == TENSORRT:
        return {
            "trt_fp16_enable": "0",
            "trt_engine_cache_enable": "1",  # building an engine takes minutes
            "trt_engine_cache_path": str(cache),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(cache),
        }
    return {}


def engine_cache(digest: str, folder: str = "") -> Path:
    """The folder of TensorRT's engines of one bundle, made if need be; in the user's cache folder where none is named.

    One a bundle, since ONNX Runtime names engines by the graph without its weights: it would take those of
    another bundle.

    Raises:
        ConfigError: it cannot be made or written.
    """
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        path = (Path(folder) if folder else caches / "ddaebm" / "tensorrt") / digest
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        raise ConfigError(
            f"TensorRT's engines cannot be kept ({error}); set DDAEBM_TENSORRT_CACHE to a folder that can be written"
        ) from error


def make_session(
    name: str,
    files: Mapping[str, bytes],
    providers: Sequence[str] = (CPU,),
    threads: int = 1,
    cache: Path | None = None,
) -> Session:
    """A session over the graph `name` among a bundle's `files`; several threads may run it at a time."""
    graph, weights = files[name], files[WEIGHTS[name]]
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    # Given like this, no other file than this one is opened, whatever a graph refers to.
    options.add_external_initializers_from_files_in_memory([WEIGHTS[name]], [weights], [len(weights)])
    options.intra_op_num_threads = threads
    # The arena keeps the largest batch of every size for ever: half of the memory, and no time won.
    options.enable_cpu_mem_arena = False
    # Spinning between batches would burn a core of an idle server.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    chosen = [(provider, provider_options(provider, cache)) for provider in providers]
    return Session(graph, options, providers=chosen, enable_fallback=0)  # no second try on the CPU


@functools.cache
def _load_cuda() -> None:
    """CUDA's libraries as pip installs them with the gpu extra, where the system's loader does not look."""
    if hasattr(ort, "preload_dlls"):  # builds for some boards are older
        with redirect_stdout(sys.stderr):  # it prints what is missing; stdout is for results
            ort.preload_dlls()


class OnnxEngine:
    """A bundle on ONNX Runtime. Its methods may be called from several threads at a time.

    Args:
        threads: threads of one call.

    Raises:
        BundleError: a graph cannot be loaded.
        ConfigError: the device is not available.
    """

    def __init__(self, bundle: Bundle, device: str = "auto", threads: int = 1, tensorrt_cache: str = "") -> None:
        self.bundle = bundle
        self.name = bundle.name
        self.digest = bundle.digest
        self.num_steps = bundle.config.num_steps
        self.contract = bundle.contract
        self.scorer = bundle.scorer
        self.explainer = bundle.explainer
        self.providers = choose_providers(device)
        self.backend = "onnxruntime-" + self.providers[0].removesuffix("ExecutionProvider").lower()
        self.workers = usable_cores() if self.providers[0] == CPU else 1  # calls at a time that make it faster
        cache = None
        if self.providers[0] == TENSORRT:
            cache = engine_cache(bundle.digest, tensorrt_cache)
            os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # its provider has no option for it
        if self.providers[0] != CPU:
            _load_cuda()
        self._threads, self._cache = threads, cache
        self.sampler = self._start("sampler.onnx")
        self.energy = self._start("energy.onnx")

    @functools.cached_property
    def generator(self) -> Session:
        """One denoising step. Loaded on first use: the sampler's graph holds the whole loop."""
        return self._start("generator.onnx")

    def _start(self, name: str) -> Session:
        wanted = self.providers[0]
        advice = "docs/gpu.md says what it needs; device=cpu (the service: DDAEBM_DEVICE=cpu) needs none of it"
        files = {file: self.bundle.read(file) for file in (name, WEIGHTS[name])}
        try:
            session = make_session(name, files, self.providers, self._threads, self._cache)
        except Exception as error:  # ONNX Runtime has no public base class for its errors
            reason = " ".join(str(error).split())
            if wanted == CPU:
                raise BundleError(f"{self.bundle.path}: ONNX Runtime cannot load {name} ({reason})") from error
            raise ConfigError(f"{wanted} cannot start {name} ({reason}); {advice}") from error
        if session.get_providers()[0] != wanted:  # a library that is missing is no error to ONNX Runtime
            raise ConfigError(f"{wanted} failed to start: a library or the driver is missing; {advice}")
        return session

    def sample(self, seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
        """One image a seed, uint8 (B, H, W, C); each is a function of its own seed alone."""
        return run_sampler(self.sampler, self.bundle.config, seeds)

    def sample_steps(self, seeds: NDArray[np.int64], callback: StepCallback) -> NDArray[np.uint8]:
        """The images of `sample`, computed step by step.

        `callback(k, x_t, x0_hat)` is called after each step k = T - 1 … 0 with the state x_k and the generator's guess
        of the clean image, float32 (B, H, W, C).
        """

        def generator(x_tp1: Any, z: Any, k: int) -> Any:
            rows = zip(_cached(self.generator, x_tp1), _cached(self.generator, z), strict=True)
            inputs = ({"x_tp1": x, "z": latent, "k": np.full(len(x), k)} for x, latent in rows)
            return np.concatenate([self.generator.run(["x0_hat"], row)[0] for row in inputs])

        def tell(k: int, x_t: Any, x0_hat: Any) -> None:
            callback(k, x_t.transpose(0, 2, 3, 1).copy(), x0_hat.transpose(0, 2, 3, 1).copy())

        config = self.bundle.config
        samples = run_steps(generator, make_schedule(config), draw_noise(config, seeds), tell)
        return from_unit(samples.transpose(0, 2, 3, 1))

    def level_statistics(self, images: NDArray[np.uint8]) -> LevelStatistics:
        """Energies of images (B, H, W, C) that are in the contract's form already."""
        return level_statistics(self.energy, images)

    def score(self, images: NDArray[np.uint8]) -> Scores:
        """Energies, OOD score and conformal p-value of each image (B, H, W, C)."""
        return Scores(*self.explain(images)[:3])

    def explain(self, images: NDArray[np.uint8]) -> Explained:
        """The scores of `score`, with the energy map behind them."""
        return explain_levels(self.bundle.scorer, self.bundle.pixels, images, self.level_statistics(images))

    def warm_up(self, max_batch: int) -> None:
        """Run both ends of the batch sizes, so that TensorRT builds for every size between them."""
        for batch in {1, max_batch}:
            self.score(self.sample(image_seeds(0, batch)))


def level_statistics(energy: Session, images: NDArray[np.uint8]) -> LevelStatistics:
    names = ["energies", "energy_map", "features"]
    parts: list[Any] = [energy.run(names, {"images": part}) for part in _cached(energy, images)]
    return LevelStatistics(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def run_sampler(session: Session, config: ModelConfig, seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
    parts: list[Any] = [session.run(["images"], draw_noise(config, p)._asdict())[0] for p in _cached(session, seeds)]
    return np.concatenate(parts)


def _cached(session: Session, rows: NDArray[Any]) -> list[NDArray[Any]]:
    """`rows` (B, ...) in the parts that `session` is to have at a time; one at least."""
    most = _CACHED_ROWS if session.get_providers()[0] == CPU else max(1, len(rows))
    return [rows[start : start + most] for start in range(0, max(1, len(rows)), most)]
