"""Atomic file writes: write to a temporary name, sync to disk, rename. Also .npy, .npz and zip helpers."""

import errno
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

PARTIAL = ".partial"  # suffix of a temporary name, or the temporary folder within one that cannot be renamed


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add `path` to an OSError that names no file, as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def require_writable(path: Path) -> None:
    """Check that `path` can be made or replaced, before the work that it is for.

    Raises:
        OSError: A folder above `path` is missing and cannot be made, is a file, or may not be written.
    """
    path = _follow(path)
    above = next(folder for folder in path.parents if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(above))
    if not os.access(above, os.W_OK | os.X_OK) and not (path.is_dir() and os.access(path, os.W_OK | os.X_OK)):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(above))


def write_file(path: Path, contents: bytes, sync: bool = True) -> None:
    """Replace `path` by `contents`. If the process is killed, either the old or the new file remains.

    If `path` is a link, the file that it leads to is replaced. The same holds for the other functions.

    Args:
        sync: False is faster for many small files, but a power failure may leave an empty file.
    """
    path = _follow(path)
    with _replacing(path, _beside(path), sync) as handle:
        handle.write(contents)


@contextmanager
def write_stream(path: Path) -> Iterator[IO[bytes]]:
    """Yield a temporary file that replaces `path` when the block ends without an error.

    Each process has its own temporary file. If two processes write `path` at once, the last one to finish wins.
    """
    path = _follow(path)
    with _replacing(path, path.with_name(f".{path.name}.{os.getpid()}.partial")) as handle:
        yield handle


@contextmanager
def _replacing(path: Path, beside: Path, sync: bool = True) -> Iterator[IO[bytes]]:
    with naming(path):
        try:
            with beside.open("wb") as handle:
                yield handle
                handle.flush()
                if sync:
                    os.fsync(handle.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        if sync:
            _sync(path.parent)


def write_zip(handle: IO[bytes], members: Iterable[tuple[str, bytes]]) -> None:
    """Write members (name, contents) as an uncompressed zip. The same members give the same bytes."""
    with zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as archive:
        for name, contents in members:
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), contents)


@contextmanager
def write_folder(path: Path, last: str = "") -> Iterator[Path]:
    """Yield an empty temporary folder that replaces `path` when the block ends without an error.

    A folder cannot be replaced in one step, so an existing `path` is first renamed to `.NAME.old`. If the process is
    killed between the two renames, only that one remains. A mount point, or a folder whose parent may not be written,
    cannot be renamed. Its files are replaced one by one.

    Args:
        last: Name of the file without which the others are not valid. It is the first to go and the last to come where
            files are replaced one by one.
    """
    path = _follow(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    inside = path.is_dir() and not os.access(path.parent, os.W_OK)
    beside, old = path / PARTIAL if inside else _beside(path), path.with_name(f".{path.name}.old")
    with naming(path):
        shutil.rmtree(beside, ignore_errors=True)  # left by a killed process
        beside.mkdir()
        try:
            yield beside
            _sync_files(beside)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)
        if inside or not _replace_folder(beside, path, old):
            _replace_files(beside, path, last)
        _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _replace_folder(beside: Path, path: Path, old: Path) -> bool:
    """Move `path` to `old` and `beside` to `path`. False if `path` is a mount point."""
    try:
        if path.exists():
            os.replace(path, old)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        return False
    os.replace(beside, path)
    return True


def _replace_files(beside: Path, path: Path, last: str) -> None:
    """Move the files of `beside` to `path`, the file `last` at the end, and delete all others in `path`."""
    incoming = path / PARTIAL
    if beside != incoming:  # on another disk
        shutil.rmtree(incoming, ignore_errors=True)
        shutil.move(beside, incoming)
        _sync_files(incoming)
    (path / last).unlink(missing_ok=True)
    _sync(path)
    for file in path.iterdir():
        if file.is_file():
            file.unlink()
    for file in sorted(incoming.iterdir(), key=lambda file: file.name == last):
        os.replace(file, path / file.name)
    _sync(path)
    incoming.rmdir()


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


def _follow(path: Path) -> Path:
    """`path` without links. A link that leads nowhere gives the place that it leads to."""
    return Path(os.path.realpath(path))


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}{PARTIAL}")


def _sync_files(folder: Path) -> None:
    for file in folder.iterdir():
        _sync(file)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
