"""Convert the arguments of the Python API: images of any accepted type to entries, and seeds to an array."""

import secrets
from collections.abc import Iterable, Iterator, Mapping, Set
from os import PathLike, fspath
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddaebm.model.errors import InputError
from ddaebm.model.images.formats import Entry
from ddaebm.model.images.readers import entries
from ddaebm.model.noise import MAX_SEED, image_seeds

One: TypeAlias = "NDArray[np.uint8] | Image.Image | bytes | str | PathLike[str]"
Images: TypeAlias = "One | Iterable[One]"

_TO_BYTE = {
    "f": "scale to 0..255 and convert: (x * 255).round().astype('uint8') for values in [0, 1]",
    "b": "convert: x.astype('uint8') * 255",
}


def entries_of(images: Images, channels: int | None = None) -> Iterator[Entry]:
    """Yield one entry per image, in order. Images are decoded later, batch by batch.

    Args:
        images: One of the following, or an iterable of them.
            A uint8 array: one image (H, W) or (H, W, C), or a batch (N, H, W) or (N, H, W, C); C is 1 or 3. An array
            with three axes is one image if its last axis has length 1 or 3, otherwise N grey images.
            A PIL image.
            The bytes of an image file.
            A PATH, as str or Path: an image file, or a folder, archive or array file with any number of images.
        channels: Of the model that takes them; see `formats.npy_shape`.

    Raises:
        InputError: The type, dtype or shape is not accepted, or there is no image.
        DataError: A PATH cannot be read.
    """
    count = 0
    if is_array(images):
        for pixels in as_batch(images):
            yield Entry(str(count), pixels)
            count += 1
    elif isinstance(images, Image.Image | bytes | str | PathLike):
        for entry in _entries_of_one(images, 0, channels):
            yield entry
            count += 1
    elif isinstance(images, Iterable) and not isinstance(images, Mapping | Set | bytearray | memoryview):
        for item in images:
            for entry in _entries_of_one(item, count, channels):
                yield entry
                count += 1
    else:
        raise InputError(f"images cannot be a {_name(images)}; pass arrays, PIL images, paths, or a list of them")
    if not count:
        raise InputError("no images; pass at least one")


def _entries_of_one(item: Any, index: int, channels: int | None) -> Iterator[Entry]:
    if is_array(item):
        batch = as_batch(item)
        if len(batch) != 1 or item.ndim == 4:
            raise InputError(
                f"image {index} of the list has shape {item.shape}; one image is (H, W), (H, W, 1) or (H, W, 3)"
            )
        yield Entry(str(index), batch[0])
    elif isinstance(item, Image.Image):
        yield Entry(getattr(item, "filename", "") or str(index), item)
    elif isinstance(item, bytes):
        yield Entry(str(index), item)
    elif isinstance(item, str | PathLike):
        yield from entries(fspath(item), channels)
    else:
        raise InputError(f"image {index} of the list is a {_name(item)}, not an array, a PIL image or a path")


def is_array(value: Any) -> bool:
    """Return True if `value` is an array or a tensor that converts to one. PIL images convert, but do not count."""
    return hasattr(value, "__array__") and not isinstance(value, Image.Image)


def as_batch(images: Any) -> NDArray[np.uint8]:
    """View a uint8 array of one or several images as (N, H, W, C), C 1 or 3. The pixels are not copied.

    Raises:
        InputError: The dtype, number of axes or number of channels is not accepted, or the array is empty.
    """
    try:
        array = np.asarray(images)
    except Exception as error:  # raised by other libraries for tensors on a GPU or with gradients
        raise InputError(f"cannot convert a {_name(images)} to a NumPy array: {error}") from error
    if array.dtype != np.uint8:
        how = _TO_BYTE.get(array.dtype.kind, "convert with x.astype('uint8')")
        raise InputError(f"images must be uint8 from 0 to 255, not {array.dtype}; {how}")
    shape = array.shape
    if array.ndim == 2:
        array = array[None, ..., None]  # (H, W) -> (1, H, W, 1)
    elif array.ndim == 3:
        array = array[None] if shape[-1] in (1, 3) else array[..., None]  # one image, or N grey images
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        hint = "(N, H, W), (N, H, W, 1) or (N, H, W, 3); one image is (H, W), (H, W, 1) or (H, W, 3)"
        if array.ndim == 4 and array.shape[1] in (1, 3):
            hint = "channels last: images.transpose(0, 2, 3, 1)"
        elif array.ndim == 4 and array.shape[-1] == 4:
            hint = "no alpha channel: images[..., :3]"
        raise InputError(f"images have shape {shape}, but must have {hint}")
    if not array.size:
        raise InputError(f"no images: the array has shape {shape}")
    return array


def as_seeds(seeds: Any) -> NDArray[np.int64]:
    """Convert whole numbers in 0..2^53-1 to int64 (N,).

    Raises:
        InputError: The type, shape or range is not accepted, or there are no seeds.
    """
    try:
        array = np.asarray(list(seeds) if not is_array(seeds) else seeds)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"seeds must be a list of whole numbers, not {seeds!r:.80}") from error
    if array.ndim != 1 or not array.size:
        raise InputError(f"seeds must be a list of at least one whole number, not of shape {array.shape}")
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > MAX_SEED:
        raise InputError(f"seeds must be whole numbers from 0 to 2**53 - 1, not {array.tolist()!r:.80}")
    return array.astype(np.int64)


def _name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def seeds_of(n: Any, seed: Any, seeds: Any, most: int) -> NDArray[np.int64]:
    """Seeds (N,) as `ddaebm.Model.sample` documents them, N at most `most`. Raises InputError."""
    if seeds is not None:
        if n is not None or seed is not None:
            raise InputError("seeds replaces n and seed; pass either")
        wanted = as_seeds(seeds)
        n = len(wanted)
    elif n is None:
        n = 1
    if not isinstance(n, int | np.integer) or isinstance(n, bool) or n < 1:
        raise InputError(f"n must be a whole number of images from 1, not {n!r:.80}; for given seeds: seeds=[1, 2]")
    if n > most:
        raise InputError(f"{n:,} images at once are too many for memory; make at most {most:,} at a time")
    if seeds is not None:
        return wanted
    if isinstance(seed, bool):
        raise InputError(f"seed must be a whole number, not {seed}")
    first = secrets.randbelow(MAX_SEED + 1) if seed is None else as_seeds([seed])[0]
    return image_seeds(int(first), int(n))
