"""Entries, and readers of image files, arrays and data sets. Each yields entries one by one, in constant memory.

An image that cannot be read becomes an entry with an error. A file that cannot be read at all raises `DataError` or one
of `BROKEN`, to which `model.images.readers.entries` adds the file's name.
"""

import gzip
import io
import lzma
import math
import stat
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

PixelArray: TypeAlias = NDArray[np.uint8]  # (H, W, C); C is 1 or 3

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MAX_FILE_BYTES = 256 * 2**20  # per image file; a member of an archive can be arbitrarily large
# Exceptions that the libraries raise for damaged files. zipfile raises NotImplementedError for an unsupported
# compression, and RuntimeError for an encrypted member.
BROKEN = (OSError, EOFError, ValueError, struct.error, zlib.error, lzma.LZMAError, zstandard.ZstdError,
           tarfile.TarError, zipfile.BadZipFile, NotImplementedError, RuntimeError)  # fmt: skip

_MAX_NPY_HEADER = 10_000  # bytes; NumPy's own limit
_MAX_SIZE = 2**31  # of one axis
# By version. The third differs from the second in the encoding of field names alone, which images have none of.
_NPY_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0,
                (3, 0): np.lib.format.read_array_header_2_0}  # fmt: skip


class Entry(NamedTuple):
    """One image of an input, not yet decoded."""

    name: str
    content: "bytes | PixelArray | Image | ImageError"  # an image file, pixels, a PIL image, or why it is unreadable


def is_hidden(name: str) -> bool:
    """Return True if a file is hidden, such as macOS' `._` files in archives."""
    return Path(name).name.startswith(".")


def has_image_suffix(name: str) -> bool:
    """Return True if the suffix is that of an image."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def is_image_name(name: str) -> bool:
    """Return True if a file of a folder or archive is read as an image."""
    return has_image_suffix(name) and not is_hidden(name)


def unreadable(error: OSError, what: str) -> ImageFormatError:
    """The error of an entry for a file or folder that the system does not let us read."""
    return ImageFormatError(f"cannot be read ({error.strerror or error}); check the {what} and its permissions")


def file_entry(file: Path) -> Entry:
    """Read one image file. A pipe or device becomes an entry with an error; reading it might never end."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return Entry(str(file), ImageFormatError("is not a regular file; remove it, or give images"))
        with file.open("rb") as handle:
            return Entry(str(file), read_whole(handle))
    except ImageError as error:
        return Entry(str(file), error)
    except OSError as error:
        return Entry(str(file), unreadable(error, "file"))


def read_whole(handle: IO[bytes]) -> bytes:
    """Read an image file. Raises ImageTooLargeError if it is over `MAX_FILE_BYTES`."""
    data = handle.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ImageTooLargeError(f"the file is over {MAX_FILE_BYTES >> 20} MiB; use a smaller one")
    return data


def npy_entries(file: Path, channels: int | None = None) -> Iterator[Entry]:
    """The images of an .npy; see `npy_shape`."""
    with file.open("rb") as handle:
        yield from _named(file, npy_images(handle, channels))


def npz_entries(file: Path, channels: int | None = None) -> Iterator[Entry]:
    """The images of an .npz with a single array."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if len(names) != 1:
            arrays = ", ".join(name.removesuffix(".npy") for name in names)
            raise DataError(f"holds {len(names)} arrays ({arrays}); keep only the images")
        with archive.open(names[0]) as handle:
            yield from _named(file, npy_images(handle, channels))


def npy_shape(handle: IO[bytes], channels: int | None = None) -> tuple[int, int, int, int]:
    """Read the header of an .npy stream, and return the shape (n, h, w, c) of its images.

    The stream is left at the first pixel. No memory is allocated for the pixels.

    Args:
        channels: Of the model that takes the images. With three axes of which the last has length 3, the array is one
            image for a model of colour images; for others it is ambiguous.

    Raises:
        DataError: The stream is not an .npy of uint8 images, or ambiguous. Pickled objects are refused.
    """
    shape, fortran, dtype = _npy_header(handle)
    if dtype != np.uint8:
        raise DataError(f"dtype {dtype.str!s:.40}; images must be uint8")
    if fortran:
        raise DataError("the array is in Fortran order; save numpy.ascontiguousarray of it")
    if len(shape) == 3 and shape[-1] == 3 and channels != 3:
        n, h, _ = shape
        raise DataError(
            f"shape {shape} is {n} grey images of {h}x3 pixels, or one colour image; save it with shape {(*shape, 1)}"
            f" or {(1, *shape)}"
        )
    n, h, w, c = (1, *shape) if len(shape) == 3 and shape[-1] in (1, 3) else (*shape, 1) if len(shape) == 3 else (
        shape if len(shape) == 4 else (0, 0, 0, 0)
    )  # fmt: skip
    if c not in (1, 3) or not all(0 < size < _MAX_SIZE for size in (n, h, w)):
        raise DataError(f"shape {shape!s:.100}; images must have shape (n, h, w) or (n, h, w, 1 or 3)")
    return n, h, w, c


def _npy_header(handle: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and dtype."""
    magic = handle.read(8)
    size = handle.read(2 if magic[6:7] == b"\1" else 4)  # of the rest
    header = io.BytesIO(magic + size + handle.read(min(int.from_bytes(size, "little"), _MAX_NPY_HEADER + 1)))
    try:
        read = _NPY_READERS[np.lib.format.read_magic(header)]
        shape, fortran, dtype = read(header, max_header_size=_MAX_NPY_HEADER)
        return tuple(map(int, shape)), fortran, dtype
    except Exception as error:  # NumPy reads the header as Python literals, which fails in many ways
        raise DataError("not a readable .npy array of numbers") from error


def npy_images(handle: IO[bytes], channels: int | None = None) -> Iterator[PixelArray]:
    """The images of an .npy stream, one at a time.

    Raises:
        DataError: As `npy_shape`, or the stream is truncated, or longer than its header states.
    """
    count, *shape = npy_shape(handle, channels)
    yield from _pixel_rows(handle, count, tuple(shape))
    if handle.read(1):
        raise DataError("the file is longer than its header states; copy it again")


def idx_entries(file: Path) -> Iterator[Entry]:
    """The images of an IDX file, the format of MNIST: magic 0x00000803, three big-endian sizes, then the pixels."""
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as handle:
        magic, count, height, width = struct.unpack(">4I", handle.read(16))
        if magic != 0x803 or 0 in (count, height, width):
            raise DataError("not an IDX file of images")
        yield from _named(file, _pixel_rows(handle, count, (height, width, 1)))
        if handle.read(1):
            raise DataError("the file is longer than its header states; copy it again")


def _pixel_rows(handle: IO[bytes] | gzip.GzipFile, count: int, shape: tuple[int, ...]) -> Iterator[PixelArray]:
    size = math.prod(shape)
    if size > MAX_FILE_BYTES:
        raise DataError(f"images of shape {shape} are over {MAX_FILE_BYTES >> 20} MiB each; use smaller ones")
    for i in range(count):
        row = handle.read(size)
        if len(row) != size:
            raise DataError(f"truncated: it holds {i} of {count} images; copy it again")
        yield np.frombuffer(row, np.uint8).reshape(shape)


def _named(file: Path, images: Iterator[PixelArray]) -> Iterator[Entry]:
    for i, pixels in enumerate(images):
        yield Entry(f"{file}[{i}]", pixels)


def hub_entries(name: str) -> Iterator[Entry]:
    """Stream the images of `NAME[:split]` with the `datasets` library; NAME is on the Hugging Face hub, or a folder.

    Raises:
        DataError: The library is not installed, it cannot load NAME, or NAME does not have exactly one image column.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError("needs the datasets library; install the hub extra: pip install '.[cpu,hub]'") from error
    source, colon, split = name.rpartition(":")
    source, split = (source, split) if colon and "/" not in split else (name, "train")
    if not source or (source.startswith((".", "/")) and not Path(source).exists()):
        raise DataError("no such data set; give hf:NAME[:split] with a NAME on the hub, or a folder like hf:./photos")
    try:
        loaded: Any = datasets.load_dataset(source, split=split, streaming=True)
        columns = [key for key, kind in (loaded.features or {}).items() if isinstance(kind, datasets.Image)]
        if len(columns) != 1:
            raise DataError(f"has {len(columns)} columns of images ({', '.join(columns)}); it must have one")
        rows = iter(loaded.cast_column(columns[0], datasets.Image(decode=False)))
        for i, row in enumerate(rows):
            image = row[columns[0]]
            if image["bytes"] is None:  # a data set on the local disk
                yield file_entry(Path(image["path"]))
            else:
                yield Entry(f"hf:{name}[{i}]", image["bytes"])
    except DataError:
        raise
    except Exception as error:  # the library's loaders raise many types
        raise DataError(str(error)) from error
