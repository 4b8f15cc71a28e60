"""Images with their classes: the labels of an IDX file lie beside it, those of files are the names of their folders."""

import gzip
import struct
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.errors import DataError
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.readers import entries, find_idx, read_images


class Labelled(NamedTuple):
    """Images (N, H, W, C), and for each the place of its class in `classes` (N,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def take(self, places: NDArray[np.int64]) -> Self:
        return self._replace(images=self.images[places], labels=self.labels[places])


def read_labelled(path: str | Path, contract: Contract) -> Labelled:
    """All images of `path`, as `model.images.readers.read_images` takes them, with their classes.

    Raises:
        DataError: as `read_images`; no labels beside an IDX file; files that lie in fewer than two folders.
    """
    images = read_images(path, contract)
    idx = None if str(path).startswith("hf:") else find_idx(Path(path))
    if idx is not None:
        return _with_idx_labels(idx, images)
    names = [Path(entry.name.rpartition(":")[2]).parent.name for entry in entries(path)]
    classes = tuple(sorted(set(names)))
    if len(classes) < 2:
        raise DataError(
            f"{path}: no classes; they are the names of the folders that the files lie in (CLASS/FILE.png),"
            " or a file of labels beside an IDX file of images"
        )
    place = {name: i for i, name in enumerate(classes)}
    return Labelled(images, np.array([place[name] for name in names]), classes)


def _with_idx_labels(idx: Path, images: NDArray[np.uint8]) -> Labelled:
    """Magic 0x00000801 and a big-endian count, then one byte a label."""
    path = idx.with_name(idx.name.replace("images-idx3", "labels-idx1"))
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            magic, count = struct.unpack(">2I", handle.read(8))
            labels = np.frombuffer(handle.read(), np.uint8).astype(np.int64)
    except (OSError, EOFError, struct.error) as error:
        raise DataError(f"{path}: the labels of {idx.name} cannot be read ({error})") from error
    if magic != 0x801 or not count == len(labels) == len(images):
        raise DataError(f"{path}: not the labels of the {len(images)} images of {idx.name}")
    return Labelled(images, labels, tuple(map(str, range(labels.max() + 1))))
