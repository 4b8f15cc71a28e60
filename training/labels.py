"""Read labelled images.

The labels of an IDX file are in a second file beside it. The label of an image file is the name of its folder.
"""

import gzip
import struct
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.errors import DataError
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.decode import MAX_PIXELS
from ddaebm.model.images.folders import find_idx
from ddaebm.model.images.readers import read_named


class Labelled(NamedTuple):
    """Images (N, H, W, C), the index of each image's class in `classes` (N,), and the names of the classes."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def take(self, places: NDArray[np.int64]) -> Self:
        """The images and labels at indices `places`."""
        return self._replace(images=self.images[places], labels=self.labels[places])


def read_labelled(path: str | Path, contract: Contract, max_pixels: int = MAX_PIXELS) -> Labelled:
    """Read all images of `path` with `model.images.readers.read_named`, and their classes.

    Raises:
        DataError: As `read_images`; an IDX file has no labels file; or the images are in fewer than two folders.
    """
    images, names = read_named(path, contract, max_pixels)
    idx = None if str(path).startswith("hf:") else find_idx(Path(path))
    if idx is not None:
        return _with_idx_labels(idx, images)
    folders = [Path(name.rpartition(":")[2]).parent.name for name in names]
    classes = tuple(sorted(set(folders)))
    if len(classes) < 2:
        raise DataError(
            f"{path}: no classes found; put the images of each class in a folder of its own (CLASS/FILE.png),"
            " or give an IDX file with a labels file beside it"
        )
    place = {name: i for i, name in enumerate(classes)}
    return Labelled(images, np.array([place[name] for name in folders]), classes)


def _with_idx_labels(idx: Path, images: NDArray[np.uint8]) -> Labelled:
    """Read the labels file: magic 0x00000801, a big-endian count, then one byte per label."""
    path = idx.with_name(idx.name.replace("images-idx3", "labels-idx1"))
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            magic, count = struct.unpack(">2I", handle.read(8))
            labels = np.frombuffer(handle.read(), np.uint8).astype(np.int64)
    except (OSError, EOFError, struct.error) as error:
        raise DataError(f"{path}: cannot read the labels of {idx.name} ({error}); put a labels file there") from error
    if magic != 0x801 or not count == len(labels) == len(images):
        raise DataError(
            f"{path}: not the labels of the {len(images)} images of {idx.name}; give the files of one data set"
        )
    return Labelled(images, labels, tuple(map(str, range(labels.max() + 1))))
