"""Files that are whole or not there: written beside their place, synced, renamed."""

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
    """Replace `path` by `contents`; a kill leaves the old file or the new one.

    Without `sync` a power cut may leave an empty one: for many small files that can be made again.
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
    """A file to write, which takes the place of `path` when the block ends without an error.

    Each process has its own: of two that write the same file at once the last one's stays, whole.
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
    """A zip of (name, contents), stored: for what is compressed already. The same members give the same bytes."""
    with zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as archive:
        for name, contents in members:
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), contents)


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `path` when the block ends without an error.

    Folders cannot be exchanged in one step: an old `path` steps aside first, and a kill in that moment
    leaves it as `.NAME.old`.
    """
    beside, old = _beside(path), path.with_name(f".{path.name}.old")
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(beside, ignore_errors=True)  # what a killed process left
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
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def read_arrays(contents: bytes) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz by name; never pickled objects.

    Raises:
        ValueError: not such a file, or a broken one.
    """
    try:
        loaded = np.load(io.BytesIO(contents), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("one array, not an archive of them")
        with loaded as archive:
            return {name: archive[name] for name in archive.files}
    except (EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"not a readable .npz: {error or 'cut short'}") from error


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
