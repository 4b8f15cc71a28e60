"""A bundle: a folder with one trained model, everything that serving needs, and a manifest of hashes.

This module and `manifest` define the disk format. A bundle holds data, never code: JSON, ONNX, safetensors, and
NumPy arrays that are loaded without pickle.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.config import ModelConfig
from ddaebm.model.errors import BundleError, BundleHashError, BundleMissingFileError
from ddaebm.model.files import PARTIAL, read_arrays, require_writable, write_folder
from ddaebm.model.hashes import read_verified, require_plain
from ddaebm.model.images.contract import Contract, Masked
from ddaebm.model.manifest import MANIFEST as MANIFEST
from ddaebm.model.manifest import (
    WITHOUT_PLACES,
    WITHOUT_SPOTS,
    Calibration,
    FitReport,
    Manifest,
    check_name,
    format_of,
    parse_manifest,
)
from ddaebm.model.ood.arrays import from_arrays, to_arrays
from ddaebm.model.ood.calibration import Fitted
from ddaebm.model.ood.checks import check_arrays
from ddaebm.model.ood.explain import Explainer
from ddaebm.model.ood.scoring import Scorer

SHIPPED = Path(__file__).parent / "bundles"
# Graph -> weights. A graph refers to its weights, so that a bundle stores each number once.
WEIGHTS = {
    "sampler.onnx": "generator.safetensors",
    "generator.onnx": "generator.safetensors",
    "energy.onnx": "energy_net.safetensors",
    "places.onnx": "energy_net.safetensors",
}
_REQUIRED = (*WEIGHTS, *WEIGHTS.values(), "calibration.npz", "trained_on.npy")
_CALIBRATED = ("energy.onnx", "energy_net.safetensors")  # calibration.npz is computed with these files


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: every file has the hash that the manifest states.

    `digest` is the sha256 of the manifest. It identifies the whole bundle, because the manifest holds all hashes.
    """

    path: Path
    name: str
    digest: str
    config: ModelConfig
    native: Contract  # the form in which the networks take images, and of samples
    side: int | None  # pixels along both sides of an image that is scored densely; None: in the native form alone
    fitted: Fitted
    training: Mapping[str, Any]  # recipe, steps and other settings, for people
    splits: Mapping[str, Any]  # size and digest of each part of the training data
    fit: Mapping[str, Any] | None  # of `ddaebm fit`: numbers of images, and what the gate would catch
    files: Mapping[str, str]  # name -> sha256

    @property
    def contract(self) -> Contract:
        """The form to which images are brought to be scored."""
        return contract_at(self.native, self.side)

    @property
    def scorer(self) -> Scorer:
        return self.fitted.scorer

    @property
    def explainer(self) -> Explainer:
        return self.fitted.explainer

    def fingerprints(self) -> NDArray[np.uint64]:
        """Read the fingerprints of all images used for training or standardisation, (N,), ascending.

        Raises:
            BundleError: The file holds something else.
        """
        try:
            known: NDArray[np.uint64] = np.load(io.BytesIO(self.read("trained_on.npy")), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise BundleError(
                f"{self.path}: trained_on.npy cannot be read ({error}); export the bundle again"
            ) from error
        if known.dtype != np.uint64 or known.ndim != 1:
            raise BundleError(f"{self.path}: trained_on.npy holds no fingerprints; export the bundle again")
        return known

    def read(self, name: str) -> bytes:
        """Read one file and check its hash again, because the folder may have been replaced since loading.

        Raises:
            BundleHashError: The file has changed.
            BundleMissingFileError: The file has been removed, or the manifest does not name it.
        """
        if name not in self.files:
            raise BundleMissingFileError(f"{self.path}: the manifest names no {name}; export the bundle again")
        return read_verified(self.path, name, self.files[name])


def write_bundle(
    path: Path,
    name: str,
    config: ModelConfig,
    contract: Contract,
    fitted: Fitted,
    training: Mapping[str, Any],
    splits: Mapping[str, Any],
    files: Mapping[str, bytes],
    evaluation: Mapping[str, Any] | None = None,
    calibrated_on: Mapping[str, Any] | None = None,
    fit: Mapping[str, Any] | None = None,
    side: int | None = None,
) -> Bundle:
    """Write a bundle to a temporary folder, read it back, and only then move it to `path`.

    Args:
        contract: The native form.
        calibrated_on: Size and digest of the calibration images. The default is the calibration part of `splits`.

    Raises:
        ConfigError: A bundle cannot have this name.
        BundleError: `path` holds something that is not a bundle, or the result cannot be read back.
    """
    check_name(name)
    require_replaceable(path)
    with write_folder(path, last=MANIFEST) as beside:
        for file_name, contents in files.items():
            (beside / file_name).write_bytes(contents)
        with (beside / "calibration.npz").open("wb") as handle:
            np.savez_compressed(handle, allow_pickle=False, **to_arrays(fitted))
        hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(beside.iterdir())}
        manifest = Manifest(
            format_version=format_of(fitted, "places.onnx" in files),
            name=name,
            model=config,
            preprocessing=contract,
            side=side,
            training=dict(training),
            splits=dict(splits),
            evaluation=None if evaluation is None else dict(evaluation),
            calibration=Calibration(
                size=len(fitted.scorer.calibration_scores),
                smallest_p=fitted.scorer.smallest_p,
                images=dict(calibrated_on or splits["calibration"]),
                of={file_name: hashes.get(file_name) for file_name in _calibrated(side)},
            ),
            fit=None if fit is None else FitReport.model_validate(fit),
            files=hashes,
        )
        (beside / MANIFEST).write_bytes(manifest.to_json())
        load_bundle(beside)
    return load_bundle(path)


def rewrite_bundle(
    bundle: Bundle,
    path: Path,
    name: str | None,
    fitted: Fitted,
    calibrated_on: Mapping[str, Any],
    files: Mapping[str, bytes],
    fit: Mapping[str, Any] | None = None,
    side: int | None = None,
) -> Bundle:
    """Write a copy of `bundle` with another calibration to `path`, as `write_bundle` does.

    Args:
        name: The new name; None keeps the name of `bundle`.
        files: Contents by file name, which replace files of `bundle` or are added to them.
    """
    kept = {name: bundle.read(name) for name in bundle.files if name != "calibration.npz"}
    return write_bundle(
        path, name or bundle.name, bundle.config, bundle.native, fitted, bundle.training, bundle.splits,
        {**kept, **files}, calibrated_on=calibrated_on, fit=fit, side=side,
    )  # fmt: skip


def copy_bundle(bundle: Bundle, path: Path) -> Bundle:
    """Copy a bundle to folder `path`. The copy has the same digest.

    Raises:
        BundleError: `path` holds something that is not a bundle, or a file of the bundle has changed.
    """
    if path.exists() and path.samefile(bundle.path):
        return load_bundle(path)
    require_replaceable(path)
    with write_folder(path, last=MANIFEST) as beside:
        for name, expected in {**bundle.files, MANIFEST: bundle.digest}.items():
            (beside / name).write_bytes(read_verified(bundle.path, name, expected))
    return load_bundle(path)


def require_replaceable(path: Path) -> None:
    """Check that a bundle can be written to `path`, before the work that it is for.

    Raises:
        BundleError: `path` holds something that is not a bundle and must not be overwritten.
        OSError: `path` may not be written.
    """
    require_writable(path)
    if not path.exists():
        return
    if not path.is_dir():
        raise BundleError(f"{path} is a file; a bundle is a folder; give another --out")
    names = {item.name for item in path.iterdir()} - {"lost+found"}  # which is in the root of a disk
    if names and not names & {MANIFEST, PARTIAL}:  # or what an interrupted call has left
        raise BundleError(f"{path} is not empty and not a bundle; give another --out")


def load_bundle(path: Path) -> Bundle:
    """Read and verify the bundle in folder `path`.

    Raises:
        BundleMissingFileError: The manifest is missing, or a file that it must name or does name.
        BundleVersionError: The bundle has another format version.
        BundlePathError: The manifest names a path outside the folder, or something that is not a regular file.
        BundleHashError: A file does not have the hash that the manifest states.
        BundleError: The manifest or the calibration cannot be read.
    """
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise BundleMissingFileError(f"{path}: no {MANIFEST}; give a folder made by `ddaebm export`")
    raw = manifest_path.read_bytes()
    manifest = parse_manifest(path, raw)
    files = manifest.files
    for name, expected in files.items():
        require_plain(path, name)
        read_verified(path, name, expected)
    required = [name for name in _REQUIRED if name != "places.onnx" or manifest.format_version > WITHOUT_PLACES]
    if missing := [name for name in required if name not in files]:
        raise BundleMissingFileError(f"{path}: the manifest names no {', '.join(missing)}; export the bundle again")
    for name in _calibrated(manifest.side):
        if manifest.calibration.of.get(name) != files[name]:
            raise BundleHashError(f"{path}: calibration.npz belongs to another {name}; export the bundle again")
    try:
        arrays = read_arrays(read_verified(path, "calibration.npz", files["calibration.npz"]))
        fitted = from_arrays(arrays, spots=manifest.format_version != WITHOUT_SPOTS)
        check_arrays(
            fitted.scorer, fitted.explainer, manifest.model, manifest.preprocessing.shape, manifest.side,
            manifest.calibration.size,
        )  # fmt: skip
    except (KeyError, ValueError) as error:
        raise BundleError(f"{path}: calibration.npz cannot be used ({error}); export the bundle again") from error
    return Bundle(
        path=path,
        name=manifest.name,
        digest=hashlib.sha256(raw).hexdigest(),
        config=manifest.model,
        native=manifest.preprocessing,
        side=manifest.side,
        fitted=fitted,
        training=manifest.training,
        splits=manifest.splits,
        fit=None if manifest.fit is None else manifest.fit.model_dump(),
        files=files,
    )


def find_bundle(name_or_path: str) -> Path:
    """Find a shipped bundle by name, or a bundle folder by path. `./NAME` is always a path.

    Raises:
        BundleMissingFileError: There is no such bundle. The message lists the shipped ones.
    """
    path = Path(name_or_path)
    is_name = name_or_path == path.name  # without a slash
    for candidate in (SHIPPED / name_or_path, path) if is_name else (path,):
        if (candidate / MANIFEST).is_file():
            return candidate
    shipped = ", ".join(sorted(p.name for p in SHIPPED.iterdir() if p.is_dir())) if SHIPPED.is_dir() else "none"
    raise BundleMissingFileError(
        f"no bundle {name_or_path!r}: give a shipped name ({shipped}) or a folder with a {MANIFEST}"
    )


def contract_at(native: Contract, side: int | None) -> Contract:
    """The form of images that are scored at `side`, for networks of the form `native`."""
    return native if side is None else Masked(side, side, native.channels, native.resize_filter)


def _calibrated(side: int | None) -> tuple[str, ...]:
    return _CALIBRATED if side is None else (*_CALIBRATED, "places.onnx")
