"""Engine that runs a bundle with ONNX Runtime, without torch.

The service, the command line, calibration and export's parity check all use it, so they compute the same numbers.
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

# Official builds send usage data to their vendor unless this is set before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort
from numpy.typing import NDArray

from ddaebm.model.bundle import MANIFEST, WEIGHTS, Bundle
from ddaebm.model.config import ModelConfig
from ddaebm.model.errors import BundleError, ConfigError
from ddaebm.model.images.arrays import from_unit
from ddaebm.model.noise import image_seeds
from ddaebm.model.ood.levels import Explained, LevelStatistics, Scores, explain_levels, score_levels
from ddaebm.model.parallel import usable_cores
from ddaebm.model.sampling import draw_noise
from ddaebm.model.sampling import sample as run_steps
from ddaebm.model.schedule import make_schedule

Session: TypeAlias = ort.InferenceSession
StepCallback: TypeAlias = Callable[[int, NDArray[np.float32], NDArray[np.float32]], object]

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_PROVIDERS = {"auto": [CUDA, CPU], "cpu": [CPU], "cuda": [CUDA, CPU], "tensorrt": [TENSORRT, CUDA, CPU]}
# Images computed at a time on a CPU. The activations of more do not fit into a core's cache, since the energy network
# evaluates each image at T levels; and the sampler would take twice the memory for no gain (docs/performance.md).
_CACHED_ROWS = 16
_GPU_EXTRA = "install the gpu extra instead of cpu (docs/gpu.md)"


def choose_providers(device: str, available: Sequence[str] | None = None) -> list[str]:
    """Return the ONNX Runtime execution providers for "auto", "cpu", "cuda" or "tensorrt", the preferred one first.

    Raises:
        ConfigError: The device is unknown, or this build of ONNX Runtime does not support it.
    """
    available = ort.get_available_providers() if available is None else available
    if device not in _PROVIDERS:
        raise ConfigError(f"device must be one of {', '.join(_PROVIDERS)}, not {device!r}")
    wanted = _PROVIDERS[device]
    if device != "auto" and wanted[0] not in available:
        raise ConfigError(f"device={device}, but this onnxruntime has no {wanted[0]}; {_GPU_EXTRA}")
    return [provider for provider in wanted if provider in available]


def provider_options(provider: str, cache: Path | None = None) -> dict[str, str]:
    """Return the options of a provider; `cache` is the folder for TensorRT engines.

    TensorRT gets no explicit batch-size profile. A profile has to name the inputs of every subgraph that TensorRT
    compiles, and these are not the inputs of the graph: the energy graph starts with integer operations, which run on
    CUDA. Without a profile TensorRT builds for the range of sizes that it has seen. `OnnxEngine.warm_up` shows it the
    smallest and the largest.
    """
    if provider == CUDA:
        return {
            "use_tf32": "0",  # the calibration scores were computed in full precision
            "cudnn_conv_algo_search": "HEURISTIC",  # the default benchmarks every algorithm at each new batch size
            "arena_extend_strategy": "kSameAsRequested",  # the default doubles the allocated GPU memory
        }
    if provider == TENSORRT:
        return {
            "trt_fp16_enable": "0",
            "trt_engine_cache_enable": "1",  # because building an engine takes minutes
            "trt_engine_cache_path": str(cache),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(cache),
        }
    return {}


def engine_cache(digest: str, folder: str = "") -> Path:
    """Create and return the folder for the TensorRT engines of one bundle.

    Each bundle needs its own folder. ONNX Runtime names engines by the graph without its weights, so in a shared folder
    it would load the engine of another bundle.

    Args:
        folder: Parent folder; the default is in the user's cache folder.

    Raises:
        ConfigError: The folder cannot be created or written.
    """
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        path = (Path(folder) if folder else caches / "ddaebm" / "tensorrt") / digest
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home folder
        raise ConfigError(
            f"cannot store TensorRT engines ({error}); set DDAEBM_TENSORRT_CACHE to a writable folder"
        ) from error


def make_session(
    name: str,
    files: Mapping[str, bytes],
    providers: Sequence[str] = (CPU,),
    threads: int = 1,
    cache: Path | None = None,
) -> Session:
    """Create an ONNX Runtime session for the graph `name`. Several threads may use it at once.

    Args:
        files: Contents of the graph and of its weights file, by name.
        threads: CPU threads of one call.
        cache: Folder for TensorRT engines.
    """
    graph, weights = files[name], files[WEIGHTS[name]]
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    # The weights come from memory, so that a graph cannot make ONNX Runtime open any other file.
    options.add_external_initializers_from_files_in_memory([WEIGHTS[name]], [weights], [len(weights)])
    options.intra_op_num_threads = threads
    # The arena never frees the memory of the largest batches. It doubles the memory use and saves no time.
    options.enable_cpu_mem_arena = False
    # Threads that spin between batches would keep a core of an idle server busy.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    chosen = [(provider, provider_options(provider, cache)) for provider in providers]
    return Session(graph, options, providers=chosen, enable_fallback=0)  # do not fall back to the CPU


@functools.cache
def _load_cuda() -> None:
    """Load the CUDA libraries that pip installed with the gpu extra; the system's loader does not search there."""
    if hasattr(ort, "preload_dlls"):  # missing in older builds, which some boards need
        with redirect_stdout(sys.stderr):  # it prints missing libraries, and stdout is for results
            ort.preload_dlls()


class OnnxEngine:
    """Runs the graphs of a bundle with ONNX Runtime; implements `model.engine.Engine`.

    Several threads may call its methods at once.

    Args:
        device: "auto", "cpu", "cuda" or "tensorrt".
        threads: CPU threads of one call.
        tensorrt_cache: Folder for TensorRT engines; the default is in the user's cache folder.

    Raises:
        BundleError: A graph cannot be loaded.
        ConfigError: The device is unknown or not available.
    """

    def __init__(self, bundle: Bundle, device: str = "auto", threads: int = 1, tensorrt_cache: str = "") -> None:
        self.bundle = bundle
        self.name = bundle.name
        self.digest = bundle.digest
        self.num_steps = bundle.config.num_steps
        self.contract = bundle.contract
        self.scorer = bundle.scorer
        self.explainer = bundle.explainer
        self.fit = bundle.fit
        self.providers = choose_providers(device)
        self.backend = "onnxruntime-" + self.providers[0].removesuffix("ExecutionProvider").lower()
        self.workers = usable_cores() if self.providers[0] == CPU else 1
        cache = None
        if self.providers[0] == TENSORRT:
            cache = engine_cache(bundle.digest, tensorrt_cache)
            os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # TensorRT's provider has no option for TF32
        if self.providers[0] != CPU:
            _load_cuda()
        self._threads, self._cache = threads, cache
        self.sampler = self._start("sampler.onnx")
        self.energy = self._start("energy.onnx")
        self._require_shapes()

    @functools.cached_property
    def generator(self) -> Session:
        """The graph of one denoising step. Loaded on first use, because `sample` does not need it."""
        return self._start("generator.onnx")

    def _start(self, name: str) -> Session:
        wanted = self.providers[0]
        advice = "see docs/gpu.md for its requirements, or use device=cpu (for the service: DDAEBM_DEVICE=cpu)"
        files = {file: self.bundle.read(file) for file in (name, WEIGHTS[name])}
        try:
            session = make_session(name, files, self.providers, self._threads, self._cache)
        except Exception as error:  # ONNX Runtime has no public base class for its errors
            reason = " ".join(str(error).split())
            if wanted == CPU:
                raise BundleError(f"{self.bundle.path}: ONNX Runtime cannot load {name} ({reason})") from error
            raise ConfigError(f"{wanted} cannot start {name} ({reason}); {advice}") from error
        if session.get_providers()[0] != wanted:  # ONNX Runtime reports no error if a library is missing
            raise ConfigError(f"{wanted} failed to start: a library or the driver is missing; {advice}")
        return session

    def _require_shapes(self) -> None:
        """Raise BundleError if the graphs take or give other arrays than the manifest and the score say."""
        config = self.bundle.config
        image, levels = config.data_shape, config.num_steps
        features = len(self.scorer.whitening) // levels - 1  # the score has T energies and T·F features
        # The sides of images are free in graphs of format 6; those of its grid are not used yet.
        wanted = {"x_T": image, "z": (levels, config.latent_dim), "noise": (levels - 1, *image),
                  "images": self.contract.shape, "energies": (levels,), "energy_map": (levels, *image[1:]),
                  "features": (levels, features)}  # fmt: skip
        graphs = (self.sampler, self.energy)
        ends = [end for graph in graphs for end in (*graph.get_inputs(), *graph.get_outputs())]
        found = [(end.name, tuple(end.shape[1:])) for end in ends]
        if wrong := [
            f"{name} {shape}" for name, shape in found if name != "grid" and not _fits(shape, wanted.get(name))
        ]:
            raise BundleError(
                f"{self.bundle.path}: its graphs have {', '.join(wrong)}, unlike {MANIFEST} or calibration.npz;"
                " export the bundle again"
            )

    def sample(self, seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Sample one image for each seed: int64 (B,) -> uint8 (B, H, W, C). Each image depends only on its seed."""
        return run_sampler(self.sampler, self.bundle.config, seeds)

    def sample_steps(self, seeds: NDArray[np.int64], callback: StepCallback) -> NDArray[np.uint8]:
        """Sample the images of `sample` step by step.

        Args:
            callback: Called as `callback(k, x_t, x0_hat)` after each step k = T-1..0, with state x_k and the
                generator's prediction of x_clean, both float32 (B, H, W, C) with values near [-1, 1].
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
        """Compute the outputs of the energy network for uint8 images (B, H, W, C) that match the contract."""
        return level_statistics(self.energy, images)

    def score(self, images: NDArray[np.uint8]) -> Scores:
        """Compute energies, OOD scores, conformal p-values and boxes of images (B, H, W, C)."""
        return score_levels(self.scorer, self.explainer, images, self.level_statistics(images))

    def explain(self, images: NDArray[np.uint8]) -> Explained:
        """Compute the results of `score`, and heatmaps."""
        return explain_levels(self.scorer, self.explainer, images, self.level_statistics(images))

    def warm_up(self, max_batch: int) -> None:
        """Run batches of size 1 and `max_batch`, so that TensorRT builds for every size between them."""
        for batch in {1, max_batch}:
            self.score(self.sample(image_seeds(0, batch)))


def _fits(shape: tuple[int | str | None, ...], wanted: tuple[int, ...] | None) -> bool:
    """Return True if a graph's `shape` can be `wanted`; free axes are no numbers."""
    return (
        wanted is not None
        and len(shape) == len(wanted)
        and all(side == number for side, number in zip(shape, wanted, strict=True) if isinstance(side, int))
    )


def level_statistics(energy: Session, images: NDArray[np.uint8]) -> LevelStatistics:
    """Run the graph `energy.onnx` on uint8 images (B, H, W, C)."""
    names = ["energies", "energy_map", "features"]
    parts: list[Any] = [energy.run(names, {"images": part}) for part in _cached(energy, images)]
    return LevelStatistics(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def run_sampler(session: Session, config: ModelConfig, seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Run the graph `sampler.onnx`: seeds int64 (B,) -> images uint8 (B, H, W, C)."""
    parts: list[Any] = [session.run(["images"], draw_noise(config, p)._asdict())[0] for p in _cached(session, seeds)]
    return np.concatenate(parts)


def _cached(session: Session, rows: NDArray[Any]) -> list[NDArray[Any]]:
    """Split `rows` (B, ...) into the batches that `session` runs one at a time; at least one, possibly empty."""
    most = _CACHED_ROWS if session.get_providers()[0] == CPU else max(1, len(rows))
    return [rows[start : start + most] for start in range(0, max(1, len(rows)), most)]
