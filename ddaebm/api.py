"""The Python API: `load` a bundle, then `sample`, `score`, `heatmap` and `save`. NumPy in and out."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.bulk import BATCH, batch_of, parts, score_entries
from ddaebm.model.bundle import Bundle, contract_at, copy_bundle, find_bundle, load_bundle
from ddaebm.model.engine import Engine, load_engine
from ddaebm.model.errors import ImageError, InputError
from ddaebm.model.fitting import fit
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.encode import enlarge
from ddaebm.model.images.formats import Entry
from ddaebm.model.images.inputs import Images, entries_of, seeds_of
from ddaebm.model.images.readers import decode_entry
from ddaebm.model.large import choose_side, read_region, require_side
from ddaebm.model.ood.conformal import false_alarm_interval
from ddaebm.model.ood.regions import Region, regions
from ddaebm.model.parallel import in_order
from ddaebm.model.runtime import OnnxEngine, StepCallback
from ddaebm.result import ScoreResult, make_result, require_readable

MAX_SAMPLE_BYTES = 2**32  # of the result of one `sample` call


def load(
    bundle: str | PathLike[str] = "fashion-mnist", *, device: str = "auto", backend: str = "onnx", threads: int = 1
) -> "Model":
    """Load a bundle: a trained model with its calibration.

    Args:
        bundle: name of a shipped bundle ("fashion-mnist", "cifar10-jpeg"), or a folder made by `ddaebm export`,
            `ddaebm calibrate` or `Model.save`.
        device: "auto" uses a GPU where the backend finds one; "cpu"; "cuda"; "tensorrt" (backend "onnx" only).
        backend: "onnx" (ONNX Runtime) or "torch".
        threads: threads of one inference call. On a CPU, `Model` runs one call for each core instead.

    Raises:
        BundleError: no such bundle, or its files are missing, changed or of another format version.
        ConfigError: the device or backend is not available here.
    """
    loaded = load_bundle(find_bundle(fspath(bundle)))
    start = partial(load_engine, device=device, backend=backend, threads=threads)
    return Model(loaded, start(loaded), start)


class Model:
    """A loaded bundle. All methods may be called from several threads at a time.

    Use it in a `with` block, or call `close`, to free its memory early.
    """

    def __init__(self, bundle: Bundle, engine: Engine, start: Callable[[Bundle], Engine] = load_engine) -> None:
        self._bundle = bundle
        self._open: Engine | None = engine
        self._start = start  # makes the engine of another bundle on the same device

    @property
    def name(self) -> str:
        return self._bundle.name

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, and so of everything in the bundle; 64 hexadecimal digits."""
        return self._bundle.digest

    @property
    def bundle(self) -> Bundle:
        return self._bundle

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) that every image is brought to before it is scored."""
        return self._bundle.contract.shape

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images that the model makes: `shape`, unless `fit` chose a larger side."""
        return self._bundle.native.shape

    @property
    def num_steps(self) -> int:
        """T, the number of denoising steps and of energies."""
        return self._bundle.config.num_steps

    @property
    def calibration_size(self) -> int:
        """Number n of calibration images; the smallest possible p-value is 1/(n + 1)."""
        return len(self._bundle.scorer.calibration_scores)

    @property
    def backend(self) -> str:
        return self.engine.backend

    def false_alarm_interval(self, alpha: float = 0.05, confidence: float = 0.99) -> tuple[float, float]:
        """(low, high): where the false-alarm rate at `alpha` of this calibration set lies, with `confidence`.

        Raises:
            ConfigError: alpha is below the smallest possible p-value.
        """
        return false_alarm_interval(alpha, self.calibration_size, confidence)

    def sample(
        self,
        n: int | None = None,
        seed: int | None = None,
        *,
        seeds: Sequence[int] | NDArray[np.integer] | None = None,
        callback: StepCallback | None = None,
    ) -> NDArray[np.uint8]:
        """Make images: uint8 (n, H, W, C). The same seed gives the same image, whatever else is in the batch.

        Args:
            n: number of images; 1 by default.
            seed: 0 to 2**53 - 1. The first image has this seed, the others have hashes of it (`ddaebm.image_seeds`).
                Random where it is not given.
            seeds: one seed for each image, in place of `n` and `seed`.
            callback: called as `callback(k, x_t, x0_hat)` after each denoising step, k = T - 1 down to 0, with the
                state x_k and the generator's guess of the clean image, float32 (n, H, W, C), black at -1, white at 1.

        Raises:
            InputError: an argument of the wrong type or range, or over `MAX_SAMPLE_BYTES` of images.
        """
        bytes_each = int(np.prod(self.sample_shape)) * (
            32 * self.num_steps if callback else 1
        )  # the callback needs all noise
        wanted = seeds_of(n, seed, seeds, most=MAX_SAMPLE_BYTES // bytes_each)
        engine = self.engine
        if callback is not None:
            if not isinstance(engine, OnnxEngine):
                raise InputError(f"callback needs backend='onnx'; this model is on {engine.backend}")
            return engine.sample_steps(wanted, callback)
        images = np.empty((len(wanted), *self.sample_shape), np.uint8)
        starts = range(0, len(wanted), BATCH)
        batches = in_order(lambda start: engine.sample(wanted[start : start + BATCH]), starts, engine.workers)
        for start, batch in zip(starts, batches, strict=True):
            images[start : start + BATCH] = batch
        return images

    def score(self, images: Images) -> ScoreResult:
        """Energies, OOD score and conformal p-value of each image.

        Args:
            images: a uint8 array (N, H, W, C), (N, H, W), (H, W, C) or (H, W); a PIL image; bytes of an image file;
                a path of an image, folder, archive or array file; or a list of these. Images of another size or mode
                are converted as the service does it.

        Raises:
            InputError: another type, dtype or shape, or no image.
            DataError: a path that cannot be read.
            ImageError: images that cannot be read; the message names them.
        """
        entries = entries_of(images, self._bundle.contract.channels)
        return make_result(list(score_entries(self.engine, entries)), self.calibration_size)

    def heatmap(self, images: Images) -> NDArray[np.float32]:
        """Where each image is unusual: float32 (N, H, W) in the model's size.

        The unit is the heat of an ordinary image's hottest spot, at the median: half of all ordinary images stay below
        1 everywhere. `model.ood.spots` has the definition.

        Args and Raises: as `score`.
        """
        engine, contract = self.engine, self._bundle.contract

        def heat(batch: list[Entry]) -> NDArray[np.float32]:
            maps = engine.explain(_decoded(batch, contract)).heat
            return np.stack([enlarge(values, contract.shape[:2]) for values in maps]).astype(np.float32)

        batches = parts(entries_of(images, contract.channels), batch_of(engine))
        return np.concatenate(list(in_order(heat, batches, engine.workers)))

    def regions(self, images: Images) -> list[list[Region]]:
        """The strange regions of each image, the strongest first, at most five.

        A region is a named tuple (left, top, width, height, strength): a box in pixels of the model's size, and the
        heat of its hottest place in the unit of `heatmap`. Only regions of strength 1 and more are given: half of all
        ordinary images have none.

        Args and Raises: as `score`.
        """
        engine, contract = self.engine, self._bundle.contract

        def found(batch: list[Entry]) -> list[list[Region]]:
            return [regions(heat, contract.height) for heat in engine.explain(_decoded(batch, contract)).heat]

        batches = parts(entries_of(images, contract.channels), batch_of(engine))
        return [each for part in in_order(found, batches, engine.workers) for each in part]

    def fit(
        self,
        images: Images,
        *,
        hold_out: float = 0.5,
        alpha: float = 0.05,
        name: str | None = None,
        seed: int = 0,
        side: int | None = None,
        mask: str | PathLike[str] | None = None,
    ) -> "Model":
        """Fit a gate for other images, without training: a new score and p-values on the same networks.

        A part of the images, drawn at random, gives the p-values; the score is fitted to the rest. The result's
        `fit_report` tells what it would catch of these images made faulty. Write it to a folder with `save`.

        Args:
            images: ordinary images of yours, as for `score`; 40 at least, and better 400 or more.
            hold_out: share of the images that gives the p-values.
            alpha: false-alarm rate that `fit_report` is for.
            name: name of the new model; this one's by default.
            seed: draws the parts.
            side: images are brought to `side` x `side` pixels and scored densely, place by place; at that of the
                networks (`sample_shape`) as a whole. None: chosen from the images.
            mask: an image file, white where pixels count, for images that are scored densely.

        Raises:
            InputError, DataError, ImageError: as `score`; DataError also where there are too few images, or the
                networks were trained on some.
            ConfigError: images cannot be scored at this side, or a mask is given for images that are scored as a whole.
            BundleError: this model is of an older bundle format.
        """
        for argument, rate in (("hold_out", hold_out), ("alpha", alpha)):
            if not isinstance(rate, int | float | np.floating) or not 0 < rate < 1:
                raise InputError(f"{argument} must be a number between 0 and 1, not {rate!r}")
        given = list(entries_of(images, self._bundle.native.channels))
        dense = choose_side(self._bundle, given) if side is None else require_side(self._bundle, side)
        contract = contract_at(self._bundle.native, dense)
        pixels = np.concatenate([_decoded(part, contract) for part in parts(given)])
        region = read_region(None if mask is None else Path(mask), dense)
        folder = Path(mkdtemp(prefix="ddaebm-"))
        try:
            bundle = fit(self._bundle, pixels, folder / "gate", hold_out, alpha, name, seed, region=region).bundle
            model = Model(bundle, self._start(bundle), self._start)
        except BaseException:
            rmtree(folder)
            raise
        weakref.finalize(model, rmtree, folder)
        return model

    @property
    def fit_report(self) -> Mapping[str, Any] | None:
        """The findings of `fit`: numbers of images, and under "power" a row for each fault, the worst first."""
        return self._bundle.fit

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the bundle to folder `path`; the folder it was written to.

        The copy has the same digest. A bundle that is there is replaced, anything else is not.

        Raises:
            BundleError: `path` holds something else, or the bundle's own files have changed on disk.
        """
        return copy_bundle(self._bundle, Path(path)).path

    def close(self) -> None:
        """Free the engine. Calls under way end normally; later ones raise InputError."""
        self._open = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = self._open.backend if self._open else "closed"
        height, width, channels = self.shape
        return f"<ddaebm.Model {self.name!r} {self.digest[:12]}, {height}x{width}x{channels}, {state}>"

    @property
    def engine(self) -> Engine:
        """The engine, for code that makes its own batches, such as the command line."""
        if self._open is None:
            raise InputError("this model is closed; load it again")
        return self._open


def _decoded(batch: list[Entry], contract: Contract) -> NDArray[np.uint8]:
    """Pixels (B, H, W, C). Raises ImageError if some cannot be read."""
    pixels, faults = [], []
    for entry in batch:
        try:
            pixels.append(decode_entry(entry, contract).pixels)
        except ImageError as error:
            faults.append((entry.name, str(error)))
    require_readable(faults, len(batch))
    return np.stack(pixels)
