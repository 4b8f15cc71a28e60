"""Engine that runs a bundle with ONNX Runtime, without torch.

The service, the command line, calibration and export's parity check all use it, so they compute the same numbers.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.bundle import MANIFEST, WEIGHTS, Bundle
from ddaebm.model.config import ModelConfig
from ddaebm.model.errors import BundleError, ConfigError
from ddaebm.model.images.arrays import from_unit
from ddaebm.model.images.decode import bring
from ddaebm.model.noise import image_seeds
from ddaebm.model.ood.dense import Basis, Dense
from ddaebm.model.ood.levels import Explained, LevelStatistics, Scores, explain_levels, score_levels
from ddaebm.model.ood.masks import masked, without
from ddaebm.model.parallel import usable_cores, weight_of
from ddaebm.model.sampling import draw_noise
from ddaebm.model.sampling import sample as run_steps
from ddaebm.model.schedule import make_schedule
from ddaebm.model.sessions import CPU, TENSORRT, Session, choose_providers, engine_cache, load_cuda, make_session

StepCallback: TypeAlias = Callable[[int, NDArray[np.float32], NDArray[np.float32]], object]

# Images computed at a time on a CPU. The activations of more do not fit into a core's cache, since the energy network
# evaluates each image at T levels; and the sampler would take twice the memory for no gain (docs/performance.md).
_CACHED_ROWS = 16


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
        self.contract, self.native, self.side = bundle.contract, bundle.native, bundle.side
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
            load_cuda()
        self._threads, self._cache = threads, cache
        self.sampler = self._start("sampler.onnx")
        self.energy = self._start("energy.onnx")
        self._require_shapes()
        self._dense = bundle.explainer.spots if isinstance(bundle.explainer.spots, Dense) else None
        if self._dense is not None:
            self._require_places(len(self._dense.centre))  # now, because the folder may be replaced later

    @functools.cached_property
    def generator(self) -> Session:
        """The graph of one denoising step. Loaded on first use, because `sample` does not need it."""
        return self._start("generator.onnx")

    @functools.cached_property
    def places(self) -> Session:
        """The graph for large images. `fit` loads it on first use; other scores do not need it."""
        return self._start("places.onnx")

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
        # The sides of images are free in the graphs of formats 6 and 7, which have a grid that is not used.
        wanted = {"x_T": image, "z": (levels, config.latent_dim), "noise": (levels - 1, *image),
                  "images": self.native.shape, "energies": (levels,), "energy_map": (levels, *image[1:]),
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

    def _require_places(self, outputs: int) -> None:
        """Raise BundleError if `places.onnx` takes other images, or gives other than `outputs` numbers of a place."""
        ends = (*self.places.get_inputs(), *self.places.get_outputs())
        found = [(end.name, end.shape[axis]) for end, axis in zip(ends, (-1, 1), strict=False) if len(end.shape) == 4]
        if len(ends) != 2 or found != [("images", self.native.channels), ("places", outputs)]:
            raise BundleError(
                f"{self.bundle.path}: places.onnx is unlike {MANIFEST} or calibration.npz; make the bundle again"
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
        if self._dense is None:
            return level_statistics(self.energy, images)
        return self.look_closely(images, self._dense.basis, self._dense.region)

    def look_closely(self, images: NDArray[np.uint8], basis: Basis, region: NDArray[np.float32]) -> LevelStatistics:
        """The outputs for images that are scored densely, in the form of the contract or without opacity.

        Args:
            region: The places that count, (h, w). Others are black.
        """
        images, counts = masked(images, region)
        native = bring(images, self.native)
        found = level_statistics(self.energy, native)
        # On a CPU as many pixels at a time as in `_cached`.
        pixels = _CACHED_ROWS * self.native.height * self.native.width
        rows = max(1, pixels // (images.shape[1] * images.shape[2])) if self.providers[0] == CPU else len(images)
        parts = [images[start : start + rows] for start in range(0, len(images), rows)]
        places = np.concatenate([basis.project(self.place_outputs(part)) for part in parts])
        return found._replace(native=native, places=without(places, counts))

    def place_outputs(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the graph `places.onnx` on images (B, H, W, C): float32 (B, 2A, h, w)."""
        outputs: NDArray[np.float32] = self.places.run(["places"], {"images": images})[0]
        return outputs

    def score(self, images: NDArray[np.uint8]) -> Scores:
        """Compute energies, OOD scores, conformal p-values and boxes of images (B, H, W, C)."""
        return score_levels(self.scorer, self.explainer, images, self.level_statistics(images))

    def explain(self, images: NDArray[np.uint8]) -> Explained:
        """Compute the results of `score`, and heatmaps."""
        return explain_levels(self.scorer, self.explainer, images, self.level_statistics(images))

    def warm_up(self, max_batch: int) -> None:
        """Run batches of size 1 and `max_batch`, so that TensorRT builds for every size between them."""
        for batch in {1, max(1, max_batch // weight_of(self.side))}:
            self.score(bring(self.sample(image_seeds(0, batch)), self.contract))


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
