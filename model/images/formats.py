"""What images come in: one function a format, each a stream of entries in constant memory.

An image that cannot be read is an entry that says so; a file that cannot be gone through raises `DataError` or one
of `BROKEN`, and `model.images.readers.entries` adds its name.
"""

import gzip
import math
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import zstandard
from numpy.typing import NDArray

from ddaebm.model.errors import DataError, ImageError, ImageFormatError, ImageTooLargeError

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels: TypeAlias = NDArray[np.uint8]  # (H, W, C), C 1 or 3

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MAX_FILE_BYTES = 256 * 2**20  # of one image file: an archive's member may claim anything
# What a broken file makes the libraries raise: NotImplementedError is zipfile's for a compression that it lacks, and
# RuntimeError for a member under a password.
BROKEN = (OSError, EOFError, ValueError, struct.error, zlib.error, zstandard.ZstdError,
           tarfile.TarError, zipfile.BadZipFile, NotImplementedError, RuntimeError)  # fmt: skip


# What numpy.save writes. numpy's own reader evaluates the header as Python, which a hostile one turns against it.
_NPY_HEADER = re.compile(
    r"\{'descr': '([^']{1,20})', 'fortran_order': (True|False), 'shape': \(((?:\d{1,15}, ?)*(?:\d{1,15})?)\),? ?\}\s*"
)
_MAX_NPY_HEADER = 1024


class Entry(NamedTuple):
    name: str
    content: "bytes | Pixels | Image | ImageError"  # an image file, pixels, a PIL image, or why there is none of them


def is_image_name(name: str) -> bool:
    """By its suffix; hidden files (and macOS' `._` twins in archives) are none."""
    path = Path(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def folder_entries(folder: Path) -> Iterator[Entry]:
    """Image files of any depth, each folder's own files first, in the order of their names."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(filter(is_image_name, files)):
            yield file_entry(Path(parent, name))


def file_entry(file: Path) -> Entry:
    try:
        with file.open("rb") as handle:
            return Entry(str(file), _read_whole(handle))
    except ImageError as error:
        return Entry(str(file), error)
    except OSError as error:
        return Entry(str(file), ImageFormatError(f"cannot be read ({error.strerror or error})"))


def zip_entries(file: Path) -> Iterator[Entry]:
    """Image files of a .zip, in its order; a broken or encrypted member is an entry's error."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.is_dir() or not is_image_name(member.filename):
                continue
            try:
                with archive.open(member) as handle:
                    content: bytes | ImageError = _read_whole(handle)
            except ImageError as error:
                content = error
            except BROKEN as error:
                content = ImageFormatError(f"cannot be unpacked ({error})")
            yield Entry(f"{file}:{member.filename}", content)


def tar_entries(file: Path) -> Iterator[Entry]:
    """Image files of a .tar, plain or under gzip, bzip2, xz or zstd, in its order."""
    with file.open("rb") as raw, _unzstd(raw, file.name) as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # or it would keep every header it has seen
            if not member.isfile() or not is_image_name(member.name):
                continue
            handle = archive.extractfile(member)
            assert handle is not None  # isfile
            try:
                content: bytes | ImageError = _read_whole(handle)
            except ImageError as error:
                content = error
            yield Entry(f"{file}:{member.name}", content)


def _unzstd(raw: IO[bytes], name: str) -> IO[bytes]:
    if not name.lower().endswith((".zst", ".tzst")):
        return raw
    reader: IO[bytes] = zstandard.ZstdDecompressor().stream_reader(raw, closefd=False)
    return reader


def _read_whole(handle: IO[bytes]) -> bytes:
    data = handle.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ImageTooLargeError(f"the file is over {MAX_FILE_BYTES >> 20} MiB")
    return data


def npy_entries(file: Path) -> Iterator[Entry]:
    with file.open("rb") as handle:
        yield from _named(file, npy_images(handle))


def npz_entries(file: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if len(names) != 1:
            arrays = ", ".join(name.removesuffix(".npy") for name in names)
            raise DataError(f"holds {len(names)} arrays ({arrays}); keep one")
        with archive.open(names[0]) as handle:
            yield from _named(file, npy_images(handle))


def npy_shape(handle: IO[bytes]) -> tuple[int, int, int, int]:
    """(n, h, w, c) by the header of an .npy stream, which is left at its first pixel; nothing is allocated.

    Raises:
        DataError: no .npy of uint8 images; pickled objects are never loaded.
    """
    head = handle.read(8)
    width = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4, b"\x93NUMPY\x03\x00": 4}.get(head, 0)
    length = min(int.from_bytes(handle.read(width), "little"), _MAX_NPY_HEADER)
    header = _NPY_HEADER.fullmatch(handle.read(length).decode("latin-1"))
    if not width or not header:
        raise DataError("not a readable .npy array of numbers")
    descr, fortran, dimensions = header.groups()
    if descr not in ("|u1", "u1", "<u1", ">u1"):
        raise DataError(f"dtype {descr}; images must be uint8")
    if fortran == "True":
        raise DataError("the array is in Fortran order; save numpy.ascontiguousarray of it")
    shape = tuple(map(int, re.findall(r"\d+", dimensions)))
    n, h, w, c = (*shape, 1) if len(shape) == 3 else shape if len(shape) == 4 else (0, 0, 0, 0)
    if c not in (1, 3) or 0 in (n, h, w):
        raise DataError(f"shape {shape}; need (n, h, w) or (n, h, w, 1 or 3)")
    return n, h, w, c


def npy_images(handle: IO[bytes]) -> Iterator[Pixels]:
    """The images of an .npy stream, one at a time. Raises as `npy_shape`, or DataError when it is cut short."""
    count, *shape = npy_shape(handle)
    return _pixel_rows(handle, count, tuple(shape))


def idx_entries(file: Path) -> Iterator[Entry]:
    """IDX, the format of MNIST: magic 0x00000803, three big-endian sizes, then bytes."""
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as handle:
        magic, count, height, width = struct.unpack(">4I", handle.read(16))
        if magic != 0x803 or 0 in (count, height, width):
            raise DataError("not an IDX file of images")
        yield from _named(file, _pixel_rows(handle, count, (height, width, 1)))
        if handle.read(1):
            raise DataError("longer than its header says")


def _pixel_rows(handle: IO[bytes] | gzip.GzipFile, count: int, shape: tuple[int, ...]) -> Iterator[Pixels]:
    size = math.prod(shape)
    if size > MAX_FILE_BYTES:
        raise DataError(f"images of {shape} are over {MAX_FILE_BYTES >> 20} MiB each")
    for i in range(count):
        row = handle.read(size)
        if len(row) != size:
            raise DataError(f"truncated: {i} of {count} images are there")
        yield np.frombuffer(row, np.uint8).reshape(shape)


def _named(file: Path, images: Iterator[Pixels]) -> Iterator[Entry]:
    for i, pixels in enumerate(images):
        yield Entry(f"{file}[{i}]", pixels)


def hub_entries(name: str) -> Iterator[Entry]:
    """`NAME[:split]` of the `datasets` library: the hub's name of a data set, or a local folder; streamed.

    Raises:
        DataError: the library is not installed, it cannot load NAME, or there is no column of images.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError("needs the datasets library; install the hub extra: pip install '.[cpu,hub]'") from error
    source, colon, split = name.rpartition(":")
    source, split = (source, split) if colon and "/" not in split else (name, "train")
    if not source or (source.startswith((".", "/")) and not Path(source).exists()):
        raise DataError("no such data set; it is hf:NAME[:split], NAME on the hub or a folder like ./photos")
    try:
        loaded: Any = datasets.load_dataset(source, split=split, streaming=True)
        columns = [key for key, kind in (loaded.features or {}).items() if isinstance(kind, datasets.Image)]
        if len(columns) != 1:
            raise DataError(f"has {len(columns)} columns of images ({', '.join(columns)}); need one")
        rows = iter(loaded.cast_column(columns[0], datasets.Image(decode=False)))
        for i, row in enumerate(rows):
            image = row[columns[0]]
            if image["bytes"] is None:  # a data set on this disk
                yield file_entry(Path(image["path"]))
            else:
                yield Entry(f"hf:{name}[{i}]", image["bytes"])
    except DataError:
        raise
    except Exception as error:  # the library raises whatever its many loaders raise
        raise DataError(str(error)) from error
