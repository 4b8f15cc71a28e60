"""Read the images of a PATH. Training, calibration and the command line share this code.

A PATH is a folder of images (with subfolders), an image, a .zip or .tar[.gz|.bz2|.xz|.zst] of images, an `.npy` or
`.npz` of uint8, an IDX file (`*-images-idx3-ubyte[.gz]`) or a folder that holds one, or `hf:NAME[:split]`.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddaebm.model.errors import DataError, ImageError, ImageTooLargeError
from ddaebm.model.images import formats
from ddaebm.model.images.archives import tar_entries, zip_entries
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.decode import MAX_PIXELS, Decoded, check_size, convert, from_pixels, open_image, upright_size
from ddaebm.model.images.folders import Skipped, find_idx, folder_entries
from ddaebm.model.images.formats import Entry

logger = logging.getLogger("ddaebm.readers")

_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_SHOWN = 3  # names that an error message lists


def entries(path: str | Path, channels: int | None = None, tell: bool = True) -> Iterator[Entry]:
    """Yield the images of a PATH one by one, in constant memory and a fixed order.

    Args:
        channels: Of the model that takes them; see `formats.npy_shape`.
        tell: Log a warning that counts the files and folders that were skipped. False where the PATH is read twice.

    Raises:
        DataError: The PATH does not exist, has an unknown format, is truncated or has no images.
    """
    count, skipped = 0, Skipped()
    try:
        for entry in _open(path, channels, skipped):
            yield entry
            count += 1
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except formats.BROKEN as error:
        reason = "not a zip, or truncated" if isinstance(error, BadZipFile) else error or type(error).__name__
        raise DataError(f"{path}: cannot be read after {count} images ({reason}); copy it again") from error
    if not count:
        known = ", ".join(sorted(formats.IMAGE_SUFFIXES))
        raise DataError(f"{path}: no images found; give files ending in {known}{f' ({skipped})' if skipped else ''}")
    if skipped and tell:
        logger.warning("%s: %s", path, skipped)


def _open(path: str | Path, channels: int | None, skipped: Skipped) -> Iterator[Entry]:
    if str(path).startswith("hf:"):
        return formats.hub_entries(str(path)[3:])
    if not str(path):
        raise DataError("the path is empty")  # Path("") would be the working directory
    path = Path(path)
    name = path.name.lower()
    if not path.exists():
        raise DataError("no such file or folder")
    if path.is_dir():
        return _open_folder(path, skipped)
    if not path.is_file():
        raise DataError("not a regular file or a folder; write its contents to a file")
    if find_idx(path):
        return formats.idx_entries(path)
    if name.endswith(_TAR_SUFFIXES):
        return tar_entries(path, skipped)
    if name.endswith(".zip"):
        return zip_entries(path, skipped)
    if name.endswith(".npy"):
        return formats.npy_entries(path, channels)
    if name.endswith(".npz"):
        return formats.npz_entries(path, channels)
    if formats.has_image_suffix(name):
        return iter([formats.file_entry(path)])
    raise DataError("not a folder, an archive (.zip, .tar, .tar.gz, .tar.zst), .npy, .npz, IDX file or image")


def _open_folder(folder: Path, skipped: Skipped) -> Iterator[Entry]:
    """The IDX file of a folder or, where it has none, its image files. A folder with both is refused."""
    idx = find_idx(folder)
    if idx is None:
        return folder_entries(folder, skipped)
    if other := next(folder_entries(folder, skipped), None):
        raise DataError(f"holds an IDX file ({idx.name}) and also images ({other.name}); give one of them")
    skipped.take_back(idx.name)
    return formats.idx_entries(idx)


def open_entry(entry: Entry, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an entry as a PIL image and check its size; pixels of files are not decoded yet. Raises ImageError."""
    content = entry.content
    if isinstance(content, ImageError):
        raise content
    if isinstance(content, bytes):
        return open_image(content, max_pixels)
    if isinstance(content, Image.Image):
        check_size(*content.size, max_pixels)
        return content
    return from_pixels(content, max_pixels)


def decode_entry(entry: Entry, contract: Contract, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode an entry to the form of the contract. Raises ImageError."""
    return convert(open_entry(entry, max_pixels), contract)


def read_images(path: str | Path, contract: Contract, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read all images of `path` in the form of the contract: uint8 (N, H, W, C).

    Args and Raises: As `read_named`.
    """
    return read_named(path, contract, max_pixels)[0]


def read_named(
    path: str | Path, contract: Contract, max_pixels: int = MAX_PIXELS
) -> tuple[NDArray[np.uint8], list[str]]:
    """Read all images of `path` in the form of the contract, uint8 (N, *row_shape), and their N names.

    Args:
        max_pixels: Most pixels of one image.

    Raises:
        DataError: As `entries`, or some images cannot be read. The message states their number and the first names.
    """
    names: list[str] = []
    pixels = bytearray()  # grows in place; a list and np.stack would need twice the memory
    faults: list[tuple[str, ImageError]] = []
    count = resized = 0
    for entry in entries(path, contract.channels):
        count += 1
        try:
            decoded = decode_entry(entry, contract, max_pixels)
        except ImageError as error:
            faults.append((entry.name, error))
            continue
        names.append(entry.name)
        pixels += decoded.pixels.tobytes()
        resized += decoded.resized
    _refuse(faults, count)
    if resized:
        logger.warning("%s: %d of %d images were resized to %dx%d",
                       path, resized, count, contract.width, contract.height)  # fmt: skip
    return np.frombuffer(pixels, np.uint8).reshape(-1, *contract.row_shape), names


def find_contract(
    path: str | Path, size: tuple[int, int] | None = None, channels: int | None = None, max_pixels: int = MAX_PIXELS
) -> Contract:
    """Determine the contract of a data set from the headers of its images, which must all have the same form.

    Args:
        size: (height, width) to which images will be resized; if given, their sizes may differ.
        channels: 1 or 3, to which images will be converted; if given, their channels may differ.
        max_pixels: Most pixels of one image.

    Raises:
        DataError: As `entries`; some images cannot be read; or their forms differ. The message counts each form.
    """
    forms: Counter[tuple[int, int, int]] = Counter()
    names: dict[tuple[int, int, int], list[str]] = {}
    faults: list[tuple[str, ImageError]] = []
    for entry in entries(path, channels, tell=False):
        try:
            own = entry_form(entry, max_pixels)
        except ImageError as error:
            faults.append((entry.name, error))
            continue
        form = (*(size or own[:2]), channels or own[2])
        forms[form] += 1
        if forms[form] <= _SHOWN:
            names.setdefault(form, []).append(entry.name)
    _refuse(faults, len(faults) + forms.total())
    if len(forms) > 1:
        raise DataError(f"{path}: {_mixed(forms, names)}")
    ((height, width, depth),) = forms
    return Contract(height, width, depth)


def entry_form(entry: Entry, max_pixels: int = MAX_PIXELS) -> tuple[int, int, int]:
    """(height, width, channels) of an entry before conversion. Raises ImageError."""
    if isinstance(entry.content, ImageError):
        raise entry.content
    if isinstance(entry.content, np.ndarray):
        height, width, channels = entry.content.shape
        return height, width, channels
    image = open_entry(entry, max_pixels)
    width, height = upright_size(image)
    grey = image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")
    return height, width, 1 if grey else 3


def _mixed(forms: Counter[tuple[int, int, int]], names: dict[tuple[int, int, int], list[str]]) -> str:
    kinds = []
    for form, count in forms.most_common(5):
        height, width, channels = form
        examples = ", ".join(names[form]) + (", …" if count > len(names[form]) else "")
        verb, colour = "is" if count == 1 else "are", "grey" if channels == 1 else "colour"
        kinds.append(f"{count} {verb} {width}x{height} {colour} ({examples})")
    more = f"; and {len(forms) - 5} more kinds" if len(forms) > 5 else ""
    remedies = []
    if len({form[:2] for form in forms}) > 1:
        remedies.append("--size N to resize all")
    if len({form[2] for form in forms}) > 1:
        remedies.append("--channels 1 or 3 to convert all")
    return f"{forms.total()} images are not alike: {'; '.join(kinds)}{more}. Give {' and '.join(remedies)}"


def _refuse(faults: list[tuple[str, ImageError]], count: int) -> None:
    if faults:
        shown = "; ".join(f"{name}: {error}" for name, error in faults[:_SHOWN]) + (
            "; …" if len(faults) > _SHOWN else ""
        )
        large = any(isinstance(error, ImageTooLargeError) for _, error in faults)
        remedy = "repair or remove them" + (", or raise the limit (--max-pixels)" if large else "")
        raise DataError(f"{len(faults)} of {count} files cannot be used: {shown}; {remedy}")
