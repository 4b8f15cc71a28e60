"""A bundle: a folder with one trained model, everything it needs to be served, and a manifest of hashes.

This module alone knows the disk format. A bundle is data, never code: JSON, ONNX, safetensors, and
numpy arrays that are loaded without pickle.
"""

import dataclasses
import hashlib
import io
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.config import ModelConfig
from ddaebm.model.errors import (
    BundleError,
    BundleHashError,
    BundleMissingFileError,
    BundlePathError,
    BundleVersionError,
    ConfigError,
)
from ddaebm.model.files import read_arrays, write_folder
from ddaebm.model.images.contract import Contract
from ddaebm.model.ood.explain import Explainer
from ddaebm.model.ood.pixels import Pixels
from ddaebm.model.ood.scoring import Scorer

FORMAT_VERSION = 5
MANIFEST = "bundle.json"
SHIPPED = Path(__file__).parent / "bundles"
WEIGHTS = {
    "sampler.onnx": "generator.safetensors",
    "generator.onnx": "generator.safetensors",
    "energy.onnx": "energy_net.safetensors",
}  # of each graph: it refers to them, so that a bundle has each number once
_REQUIRED = (*WEIGHTS, *WEIGHTS.values(), "calibration.npz", "trained_on.npy")
_CALIBRATED = ("energy.onnx", "energy_net.safetensors")  # what calibration.npz was computed with


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: every file is the one that its manifest names.

    `digest` is the sha256 of the manifest, and so of everything in the bundle.
    """

    path: Path
    name: str
    digest: str
    config: ModelConfig
    contract: Contract
    pixels: Pixels
    scorer: Scorer
    explainer: Explainer
    training: Mapping[str, Any]  # recipe, steps and the like, for people
    splits: Mapping[str, Any]  # size and digest of each part of the training data
    files: Mapping[str, str]  # name -> sha256

    def fingerprints(self) -> NDArray[np.uint64]:
        """Of every image that the networks, or the standardisation of the score, have seen; (N,), ascending."""
        try:
            known: NDArray[np.uint64] = np.load(io.BytesIO(self.read("trained_on.npy")), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise BundleError(f"{self.path}: trained_on.npy cannot be read ({error})") from error
        if known.dtype != np.uint64 or known.ndim != 1:
            raise BundleError(f"{self.path}: trained_on.npy has no fingerprints")
        return known

    def read(self, name: str) -> bytes:
        """Contents of one file, as they were verified: another bundle may have taken the folder's place since.

        Raises:
            BundleHashError: the file has changed.
            BundleMissingFileError: it has gone, or the manifest never named it.
        """
        if name not in self.files:
            raise BundleMissingFileError(f"{self.path}: the manifest names no {name}; export the bundle again")
        return _read(self.path, name, self.files[name])


def write_bundle(
    path: Path,
    name: str,
    config: ModelConfig,
    contract: Contract,
    pixels: Pixels,
    scorer: Scorer,
    explainer: Explainer,
    training: Mapping[str, Any],
    splits: Mapping[str, Any],
    files: Mapping[str, bytes],
    evaluation: Mapping[str, Any] | None = None,
    calibrated_on: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write a bundle beside `path`, read it back, and only then move it into place.

    Args:
        calibrated_on: size and digest of the calibration images, where they are not that part of the data.

    Raises:
        BundleError: `path` holds something that is not a bundle, or the result cannot be read back.
    """
    require_replaceable(path)
    with write_folder(path) as beside:
        for file_name, contents in files.items():
            (beside / file_name).write_bytes(contents)
        with (beside / "calibration.npz").open("wb") as handle:
            arrays = dataclasses.asdict(pixels) | dataclasses.asdict(scorer) | {"log_energies": explainer.log_energies}
            np.savez_compressed(handle, allow_pickle=False, **arrays)
        hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(beside.iterdir())}
        manifest = {
            "format_version": FORMAT_VERSION,
            "name": name,
            "model": config.to_dict(),
            "preprocessing": dataclasses.asdict(contract),
            "training": dict(training),
            "splits": dict(splits),
            "evaluation": evaluation,
            "calibration": {
                "size": len(scorer.calibration_scores),
                "smallest_p": scorer.smallest_p,
                "images": dict(calibrated_on or splits["calibration"]),
                "of": {file_name: hashes.get(file_name) for file_name in _CALIBRATED},
            },
            "files": hashes,
        }
        (beside / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        load_bundle(beside)
    return load_bundle(path)


def rewrite_bundle(
    bundle: Bundle,
    path: Path,
    name: str | None,
    scorer: Scorer,
    explainer: Explainer,
    calibrated_on: Mapping[str, Any],
    files: Mapping[str, bytes],
) -> Bundle:
    """`bundle` with another calibration and `files`, by `name` or its own, written to `path` as by `write_bundle`."""
    kept = {name: bundle.read(name) for name in bundle.files if name != "calibration.npz"}
    return write_bundle(
        path, name or bundle.name, bundle.config, bundle.contract, bundle.pixels, scorer, explainer,
        bundle.training, bundle.splits, {**kept, **files}, calibrated_on=calibrated_on,
    )  # fmt: skip


def copy_bundle(bundle: Bundle, path: Path) -> Bundle:
    """The same bundle, of the same digest, in folder `path`.

    Raises:
        BundleError: `path` holds something that is not a bundle, or the bundle's own files have changed.
    """
    if path.exists() and path.samefile(bundle.path):
        return load_bundle(path)
    require_replaceable(path)
    with write_folder(path) as beside:
        for name, expected in {**bundle.files, MANIFEST: bundle.digest}.items():
            (beside / name).write_bytes(_read(bundle.path, name, expected))
    return load_bundle(path)


def require_replaceable(path: Path) -> None:
    """Raises BundleError where `path` holds something that is not a bundle, and so must not be written over."""
    if path.exists() and not (path / MANIFEST).is_file():
        raise BundleError(f"{path} exists and is not a bundle; give another --out")


def load_bundle(path: Path) -> Bundle:
    """Read and verify the bundle in folder `path`.

    Raises:
        BundleMissingFileError: no manifest, or a file it names is not there.
        BundleVersionError: written by a later release.
        BundlePathError: the manifest names something outside the folder, or not a plain file.
        BundleHashError: a file is not the one that the manifest names.
        BundleError: the manifest or the calibration cannot be read.
    """
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise BundleMissingFileError(f"{path}: no {MANIFEST}; is it a folder made by `ddaebm export`?")
    raw = manifest_path.read_bytes()
    try:
        manifest = json.loads(raw)
        version = manifest["format_version"]
        files = manifest["files"]
        if not isinstance(version, int) or not isinstance(files, dict):
            raise TypeError("format_version must be a whole number and files an object")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{manifest_path}: not a bundle manifest ({error!r})") from error
    if version != FORMAT_VERSION:
        raise BundleVersionError(
            f"{path}: bundle format {version}, this release reads {FORMAT_VERSION};"
            " upgrade ddaebm or export the bundle again"
        )
    for name, expected in files.items():
        _require_plain(path, name)
        _read(path, name, expected)
    if missing := [name for name in _REQUIRED if name not in files]:
        raise BundleMissingFileError(f"{path}: the manifest names no {', '.join(missing)}; export the bundle again")
    try:
        for name, sha256 in manifest["calibration"]["of"].items():
            if files.get(name) != sha256:
                raise BundleHashError(f"{path}: calibration.npz belongs to another {name}; export the bundle again")
        config, contract = ModelConfig.from_dict(manifest["model"]), Contract(**manifest["preprocessing"])
        channels, height, width = config.data_shape
        if contract.shape != (height, width, channels):
            raise ConfigError(f"images are {contract.shape}, the networks take {config.data_shape}")
        arrays = read_arrays(_read(path, "calibration.npz", files["calibration.npz"]))
        pixels = Pixels(**_fields(Pixels, arrays))
        return Bundle(
            path=path,
            name=manifest["name"],
            digest=hashlib.sha256(raw).hexdigest(),
            config=config,
            contract=contract,
            pixels=pixels,
            scorer=Scorer(**_fields(Scorer, arrays)),
            explainer=Explainer(arrays["log_energies"], pixels),
            training=manifest["training"],
            splits=manifest["splits"],
            files=files,
        )
    except (AttributeError, ConfigError, KeyError, TypeError, ValueError, OSError) as error:
        raise BundleError(f"{path}: the manifest cannot be used ({error})") from error


def find_bundle(name_or_path: str) -> Path:
    """A shipped bundle by name, or a folder by path.

    Raises:
        BundleMissingFileError: neither; the message lists what is shipped.
    """
    for candidate in (SHIPPED / name_or_path, Path(name_or_path)):
        if (candidate / MANIFEST).is_file():
            return candidate
    shipped = ", ".join(sorted(p.name for p in SHIPPED.iterdir() if p.is_dir())) if SHIPPED.is_dir() else "none"
    raise BundleMissingFileError(
        f"no bundle {name_or_path!r}: neither shipped ({shipped}) nor a folder with a {MANIFEST}"
    )


def _require_plain(path: Path, name: str) -> None:
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".", "..") or "\0" in name:
        raise BundlePathError(f"{path}: the manifest names {name!r}, which is outside the bundle's folder")
    try:
        mode = (path / name).lstat().st_mode
    except OSError as error:
        raise BundleMissingFileError(f"{path}: {name} is missing; copy the bundle again") from error
    if not stat.S_ISREG(mode):
        raise BundlePathError(f"{path}: {name} is not a plain file")


def _read(path: Path, name: str, expected: object) -> bytes:
    try:
        contents = (path / name).read_bytes()
    except OSError as error:
        raise BundleMissingFileError(f"{path}: {name} cannot be read; copy the bundle again") from error
    if hashlib.sha256(contents).hexdigest() != expected:
        raise BundleHashError(
            f"{path}: {name} is not the file that {MANIFEST} names (sha256 differs); copy the bundle again"
        )
    return contents


def _fields(kind: type[Any], arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {field.name: arrays[field.name] for field in dataclasses.fields(kind)}
