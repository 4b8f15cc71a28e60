"""ONNX Runtime sessions: the execution provider that a device name stands for, and the options of each."""

import functools
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TypeAlias

# Official builds send usage data to their vendor unless this is set before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

from ddaebm.model.bundle import WEIGHTS
from ddaebm.model.errors import ConfigError

Session: TypeAlias = ort.InferenceSession

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_PROVIDERS = {"auto": [CUDA, CPU], "cpu": [CPU], "cuda": [CUDA, CPU], "tensorrt": [TENSORRT, CUDA, CPU]}
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
def load_cuda() -> None:
    """Load the CUDA libraries that pip installed with the gpu extra; the system's loader does not search there."""
    if hasattr(ort, "preload_dlls"):  # missing in older builds, which some boards need
        with redirect_stdout(sys.stderr):  # it prints missing libraries, and stdout is for results
            ort.preload_dlls()
