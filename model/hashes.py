"""Read the files of a bundle, each checked against the hash that the manifest states."""

import hashlib
import stat
from pathlib import Path

from ddaebm.model.errors import BundleHashError, BundleMissingFileError, BundlePathError


def require_plain(path: Path, name: str) -> None:
    """Check that `name` is a regular file of the folder `path`.

    Raises:
        BundlePathError: It leads out of the folder, or is something else.
        BundleMissingFileError: It does not exist.
    """
    if Path(name).name != name or name in ("", ".", "..") or "\0" in name:
        raise BundlePathError(
            f"{path}: the manifest names {name!r}, which is outside the bundle's folder; copy the bundle again"
        )
    try:
        mode = (path / name).lstat().st_mode
    except OSError as error:
        raise BundleMissingFileError(f"{path}: {name} is missing; copy the bundle again") from error
    if not stat.S_ISREG(mode):
        raise BundlePathError(f"{path}: {name} is not a regular file; copy the bundle again")


def read_verified(path: Path, name: str, expected: str) -> bytes:
    """The contents of file `name` of the folder `path`, with sha256 `expected`.

    Raises:
        BundleMissingFileError: It cannot be read.
        BundleHashError: It has another hash.
    """
    try:
        contents = (path / name).read_bytes()
    except OSError as error:
        raise BundleMissingFileError(f"{path}: {name} cannot be read; copy the bundle again") from error
    if hashlib.sha256(contents).hexdigest() != expected:
        raise BundleHashError(
            f"{path}: {name} is not the file that bundle.json names (the sha256 differs); copy the bundle again"
        )
    return contents
