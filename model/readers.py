"""A PATH -> images: one code path for training, calibration and the command line.

A PATH is a folder of images (any depth), one image, `.npy`/`.npz` of uint8, an IDX file
(`*-idx3-ubyte`, also `.gz`), or a folder that holds `train-images-idx3-ubyte[.gz]`.
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import DataError, ImageError
from model.files import read_arrays
from model.images import Contract, convert, open_image, upright_size

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_IDX_NAMES = ("train-images-idx3-ubyte.gz", "train-images-idx3-ubyte")


def read_images(path: Path, contract: Contract | None = None) -> NDArray[np.uint8]:
    """All images of `path` as uint8 (N, H, W, C).

    Without a contract the first image of a folder decides size and channels, and another size is an
    error; with one, image files are brought to it, and arrays must already have its shape.

    Raises:
        DataError: nothing there, not a format above, or images that do not fit; the message names them.
    """
    if not path.exists():
        raise DataError(f"no such file or folder: {path}")
    if path.is_dir():
        idx = [path / name for name in _IDX_NAMES if (path / name).exists()]
        images = _read_idx(idx[0]) if idx else _read_folder(path, contract)
    elif "idx3-ubyte" in path.name:
        images = _read_idx(path)
    elif path.suffix in (".npy", ".npz"):
        images = _read_numpy(path)
    elif path.suffix.lower() in SUFFIXES:
        images = _read_files([path], contract)
    else:
        raise DataError(f"{path}: not a folder, .npy, .npz, IDX file or image")
    if contract and images.shape[1:] != contract.shape:
        raise DataError(f"{path}: images are {images.shape[1:]}, the model takes {contract.shape}")
    return images


def _read_folder(path: Path, contract: Contract | None) -> NDArray[np.uint8]:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise DataError(f"{path}: no images ({', '.join(sorted(SUFFIXES))}) and no IDX file in this folder")
    return _read_files(files, contract)


def _read_files(files: list[Path], contract: Contract | None) -> NDArray[np.uint8]:
    strict = contract is None
    arrays, faults = [], []
    for file in files:
        try:
            image = open_image(file.read_bytes())
            if contract is None:
                channels = 1 if image.mode in ("1", "L", "I", "I;16") else 3
                width, height = upright_size(image)
                contract = Contract(height, width, channels)
            decoded = convert(image, contract)
        except ImageError as error:
            faults.append(f"{file}: {error}")
            continue
        if strict and decoded.resized:
            faults.append(f"{file}: {image.width}x{image.height}, the others are {contract.width}x{contract.height}")
        arrays.append(decoded.pixels)
    if faults:
        shown = "; ".join(faults[:3]) + ("; …" if len(faults) > 3 else "")
        raise DataError(f"{len(faults)} of {len(files)} files cannot be used: {shown}")
    return np.stack(arrays)


def _read_numpy(path: Path) -> NDArray[np.uint8]:
    try:
        arrays = read_arrays(path)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not a readable numpy array ({error})") from error
    if len(arrays) != 1:
        raise DataError(f"{path}: holds {len(arrays)} arrays ({', '.join(arrays)}); keep one")
    (loaded,) = arrays.values()
    if loaded.dtype != np.uint8:
        raise DataError(f"{path}: dtype {loaded.dtype}; images must be uint8")
    if loaded.ndim == 3:
        loaded = loaded[..., None]
    if loaded.ndim != 4 or loaded.shape[-1] not in (1, 3) or 0 in loaded.shape:
        raise DataError(f"{path}: shape {loaded.shape}; need (n, h, w) or (n, h, w, 1 or 3)")
    return np.asarray(loaded)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """IDX, the format of MNIST: magic 0x00000803, three big-endian sizes, then bytes."""
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if path.suffix == ".gz" else raw
        magic, count, height, width = struct.unpack_from(">4I", data)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise DataError(f"{path}: not a readable IDX file ({error})") from error
    if magic != 0x803 or len(data) != 16 + count * height * width or not count:
        raise DataError(f"{path}: not an IDX file of images, or truncated")
    return np.frombuffer(data, np.uint8, offset=16).reshape(count, height, width, 1)
