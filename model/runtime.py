"""A bundle on ONNX Runtime: seeds to images, images to energies. No torch.

Used by the service, the command line, calibration, and export's parity gate, so that all of them
compute the same numbers.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

# Official builds report usage to their maker unless told not to before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort
from numpy.typing import NDArray

from model.bundle import Bundle
from model.config import ModelConfig
from model.errors import BundleError, ConfigError
from model.sampling import draw_noise
from model.scoring import statistics

ort.set_default_logger_severity(3)  # errors alone; the rest is not for users
Session: TypeAlias = ort.InferenceSession


class LevelStatistics(NamedTuple):
    """What the energy network says of B images at all T noise levels."""

    energies: NDArray[np.float32]  # (B, T)
    energy_map: NDArray[np.float32]  # (B, T, H, W), sums to the energies
    features: NDArray[np.float32]  # (B, T, F)


class Scores(NamedTuple):
    energies: NDArray[np.float32]  # (B, T)
    ood_score: NDArray[np.float64]  # (B,)
    p_value: NDArray[np.float64]  # (B,)


class Explained(NamedTuple):
    """`Scores`, and where the energy sits."""

    energies: NDArray[np.float32]  # (B, T)
    ood_score: NDArray[np.float64]  # (B,)
    p_value: NDArray[np.float64]  # (B,)
    energy_map: NDArray[np.float32]  # (B, T, H, W)


def choose_providers(device: str, available: Sequence[str] | None = None) -> list[str]:
    """ONNX Runtime execution providers for "auto", "cpu" or "cuda".

    Raises:
        ConfigError: "cuda" was asked for and this build of ONNX Runtime has none.
    """
    available = ort.get_available_providers() if available is None else available
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda, not {device!r}")
    if device == "cuda" and "CUDAExecutionProvider" not in available:
        raise ConfigError("device=cuda, but this onnxruntime has no CUDA provider; install the gpu extra")
    if device != "cpu" and "CUDAExecutionProvider" in available:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]


def make_session(graph: bytes | str, providers: Sequence[str] = ("CPUExecutionProvider",), threads: int = 0) -> Session:
    """A session over one ONNX graph; threads = 0 takes one a physical core."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # The arena keeps the largest batch of every size for ever: half of the memory, and no time won.
    options.enable_cpu_mem_arena = False
    # Spinning between batches would burn a core of an idle server.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return Session(graph, options, providers=list(providers))


class BundleRuntime:
    """Both graphs of a bundle, ready to run.

    Raises:
        BundleError: a graph cannot be loaded.
        ConfigError: the device is not to be had.
    """

    def __init__(self, bundle: Bundle, device: str = "auto", threads: int = 0) -> None:
        self.bundle = bundle
        self.providers = choose_providers(device)
        sampler, energy = bundle.read("sampler.onnx"), bundle.read("energy.onnx")
        try:
            self.sampler = make_session(sampler, self.providers, threads)
            self.energy = make_session(energy, self.providers, threads)
        except Exception as error:  # ONNX Runtime has no public base class for its errors
            raise BundleError(f"{bundle.path}: ONNX Runtime cannot load it ({error})") from error
        if self.sampler.get_providers()[0] != self.providers[0]:
            raise ConfigError(
                f"{self.providers[0]} failed to start; set device=cpu, or see ONNX Runtime's requirements"
            )

    def sample(self, seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
        """One image a seed, uint8 (B, H, W, C); each is a function of its own seed alone."""
        return run_sampler(self.sampler, self.bundle.config, seeds)

    def level_statistics(self, images: NDArray[np.uint8]) -> LevelStatistics:
        """Energies of images (B, H, W, C) that are in the contract's form already."""
        outputs: list[Any] = self.energy.run(["energies", "energy_map", "features"], {"images": images})
        return LevelStatistics(*outputs)

    def score(self, images: NDArray[np.uint8]) -> Scores:
        """Energies, OOD score and conformal p-value of each image (B, H, W, C)."""
        return Scores(*self.explain(images)[:3])

    def explain(self, images: NDArray[np.uint8]) -> Explained:
        """The scores of `score`, with the energy map behind them."""
        levels = self.level_statistics(images)
        scorer = self.bundle.scorer
        ood_score = scorer.ood_score(statistics(levels.energies, levels.features))
        return Explained(levels.energies, ood_score, scorer.p_value(ood_score), levels.energy_map)


def run_sampler(session: Session, config: ModelConfig, seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
    outputs: list[Any] = session.run(["images"], draw_noise(config, seeds)._asdict())
    images: NDArray[np.uint8] = outputs[0]
    return images
