"""A PATH -> images: one code path for training, calibration and the command line.

A PATH is a folder of images (any depth), one image, a .zip or .tar[.gz|.bz2|.xz|.zst] of images, `.npy`/`.npz` of
uint8, an IDX file (`*-images-idx3-ubyte[.gz]`) or the folder that holds one, or `hf:NAME[:split]`.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddaebm.model.errors import DataError, ImageError
from ddaebm.model.images import formats
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.decode import MAX_PIXELS, Decoded, check_size, convert, from_pixels, open_image, upright_size
from ddaebm.model.images.formats import Entry

logger = logging.getLogger("ddaebm.readers")

_IDX = "idx3-ubyte"
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_SHOWN = 3  # names in an error


def entries(path: str | Path) -> Iterator[Entry]:
    """The images of a PATH one by one, in constant memory, in a fixed order.

    Raises:
        DataError: nothing there, not a format above, or broken off; the message names the file.
    """
    count = 0
    try:
        for entry in _open(path):
            yield entry
            count += 1
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except formats.BROKEN as error:
        reason = "not a zip, or cut off" if isinstance(error, BadZipFile) else error or type(error).__name__
        raise DataError(f"{path}: cannot be read after {count} images ({reason}); copy it again") from error
    if not count:
        known = ", ".join(sorted(formats.IMAGE_SUFFIXES))
        raise DataError(f"{path}: no images in it; files ending in {known} are taken")


def _open(path: str | Path) -> Iterator[Entry]:
    if str(path).startswith("hf:"):
        return formats.hub_entries(str(path)[3:])
    if not str(path):
        raise DataError("the path is empty")  # Path("") would be the working directory
    path = Path(path)
    name = path.name.lower()
    if not path.exists():
        raise DataError("no such file or folder")
    if (idx := find_idx(path)) is not None:
        return formats.idx_entries(idx)
    if path.is_dir():
        return formats.folder_entries(path)
    if name.endswith(_TAR_SUFFIXES):
        return formats.tar_entries(path)
    if name.endswith(".zip"):
        return formats.zip_entries(path)
    if name.endswith(".npy"):
        return formats.npy_entries(path)
    if name.endswith(".npz"):
        return formats.npz_entries(path)
    if formats.is_image_name(name):
        return iter([formats.file_entry(path)])
    raise DataError("not a folder, an archive (.zip, .tar, .tar.gz, .tar.zst), .npy, .npz, IDX file or image")


def find_idx(path: Path) -> Path | None:
    """The IDX file of images that `path` is or, a folder, holds; the training images where there are several."""
    if path.is_dir():
        found = sorted(path.glob(f"train-images-{_IDX}*")) or sorted(path.glob(f"*-images-{_IDX}*"))
        return found[0] if found else None
    return path if _IDX in path.name.lower() else None


def open_entry(entry: Entry, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An entry as an image whose size is known and whose pixels are not yet decoded. Raises ImageError."""
    content = entry.content
    if isinstance(content, ImageError):
        raise content
    if isinstance(content, bytes):
        return open_image(content, max_pixels)
    if isinstance(content, Image.Image):
        check_size(*content.size, max_pixels)
        return content
    return from_pixels(content, max_pixels)


def decode_entry(entry: Entry, contract: Contract) -> Decoded:
    """An entry's pixels under the contract. Raises ImageError."""
    return convert(open_entry(entry), contract)


def read_images(path: str | Path, contract: Contract) -> NDArray[np.uint8]:
    """All images of `path`, brought to the contract: uint8 (N, H, W, C).

    Raises:
        DataError: as `entries`, or files that cannot be used: one message with their number and the first names.
    """
    pixels = bytearray()  # grows in place: a list and its stack would be there twice
    faults: list[str] = []
    count = resized = 0
    for entry in entries(path):
        count += 1
        try:
            decoded = decode_entry(entry, contract)
        except ImageError as error:
            faults.append(f"{entry.name}: {error}")
            continue
        pixels += decoded.pixels.tobytes()
        resized += decoded.resized
    _refuse(faults, count)
    if resized:
        logger.warning("%s: %d of %d images were resized to %dx%d",
                       path, resized, count, contract.width, contract.height)  # fmt: skip
    return np.frombuffer(pixels, np.uint8).reshape(-1, *contract.shape)


def find_contract(path: str | Path, size: tuple[int, int] | None = None, channels: int | None = None) -> Contract:
    """The form that all images of `path` share, read off their headers; what is given need not be shared.

    Args:
        size: (height, width) that images will be resized to.
        channels: 1 or 3, to which they will be converted.

    Raises:
        DataError: as `entries`; files that are no images; or images of several forms, with the number of each.
    """
    forms: Counter[tuple[int, int, int]] = Counter()
    names: dict[tuple[int, int, int], list[str]] = {}
    faults: list[str] = []
    for entry in entries(path):
        try:
            own = _form(entry)
        except ImageError as error:
            faults.append(f"{entry.name}: {error}")
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


def _form(entry: Entry) -> tuple[int, int, int]:
    """(height, width, channels) of an entry as it is."""
    if isinstance(entry.content, ImageError):
        raise entry.content
    if isinstance(entry.content, np.ndarray):
        height, width, channels = entry.content.shape
        return height, width, channels
    image = open_entry(entry)
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


def _refuse(faults: list[str], count: int) -> None:
    if faults:
        shown = "; ".join(faults[:_SHOWN]) + ("; …" if len(faults) > _SHOWN else "")
        raise DataError(f"{len(faults)} of {count} files cannot be used: {shown}; mend or remove them")
