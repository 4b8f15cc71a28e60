"""Atomic file writes: write to a temporary name, sync to disk, rename. Also .npy, .npz and zip helpers."""

import io
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray


def write_file(path: Path, contents: bytes, sync: bool = True) -> None:
    """Replace `path` by `contents`. If the process is killed, either the old or the new file remains.

    Args:
        sync: False is faster for many small files, but a power failure may leave an empty file.
    """
    beside = _beside(path)
    beside.write_bytes(contents)
    if sync:
        _sync(beside)
    os.replace(beside, path)
    if sync:
        _sync(path.parent)


@contextmanager
def write_stream(path: Path) -> Iterator[IO[bytes]]:
    """Yield a temporary file that replaces `path` when the block ends without an error.

    Each process has its own temporary file. If two processes write `path` at once, the last one to finish wins.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with beside.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    os.replace(beside, path)
    _sync(path.parent)


def write_zip(handle: IO[bytes], members: Iterable[tuple[str, bytes]]) -> None:
    """Write members (name, contents) as an uncompressed zip. The same members give the same bytes."""
    with zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as archive:
        for name, contents in members:
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), contents)


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that replaces `path` when the block ends without an error.

    A folder cannot be replaced in one step, so an existing `path` is first renamed to `.NAME.old`. If the process is
    killed between the two renames, only that one remains.
    """
    beside, old = _beside(path), path.with_name(f".{path.name}.old")
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(beside, ignore_errors=True)  # left by a killed process
    beside.mkdir()
    try:
        yield beside
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    for file in beside.iterdir():
        _sync(file)
    _sync(beside)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.replace(path, old)
    os.replace(beside, path)
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def encode_npy(array: NDArray[Any]) -> bytes:
    """Encode an array as .npy."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def read_arrays(contents: bytes) -> dict[str, NDArray[Any]]:
    """Read the arrays of an .npz by name. Pickled objects are refused.

    Raises:
        ValueError: The contents are no .npz, are damaged, or hold pickled objects.
    """
    try:
        loaded = np.load(io.BytesIO(contents), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("it is a single array, not an archive")
        with loaded as archive:
            return {name: archive[name] for name in archive.files}
    except (EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"not a readable .npz: {error or 'truncated'}") from error


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
