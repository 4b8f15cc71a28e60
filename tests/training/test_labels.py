"""Classes from folders, archives and IDX files."""

import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ddaebm.model.errors import DataError
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.encode import encode_png
from ddaebm.training.labels import read_labelled

GREY = Contract(4, 4, 1)


def pixels(value: int) -> np.ndarray:
    return np.full((4, 4, 1), value, np.uint8)


def write_idx(folder: Path, labels: bytes, count: int | None = None, magic: int = 0x801, gz: bool = False) -> Path:
    images = struct.pack(">4I", 0x803, 3, 4, 4) + b"".join(pixels(i).tobytes() for i in range(3))
    named = struct.pack(">2I", magic, len(labels) if count is None else count) + labels
    suffix, pack = (".gz", gzip.compress) if gz else ("", bytes)
    (folder / f"train-images-idx3-ubyte{suffix}").write_bytes(pack(images))
    (folder / f"train-labels-idx1-ubyte{suffix}").write_bytes(pack(named))
    return folder / f"train-images-idx3-ubyte{suffix}"


def test_a_class_is_the_name_of_the_folder_a_file_lies_in(tmp_path: Path) -> None:
    for name, value in (("train/frog/b.png", 2), ("train/bird/a.png", 1), ("train/frog/a.png", 3)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encode_png(pixels(value)))
    data = read_labelled(tmp_path, GREY)
    assert data.classes == ("bird", "frog")
    assert {(int(image[0, 0, 0]), data.classes[k]) for image, k in zip(data.images, data.labels, strict=True)} == {
        (1, "bird"), (2, "frog"), (3, "frog"),
    }  # fmt: skip


def test_an_archive_s_classes_are_its_folders(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("t/z/1.png", "t/a/1.png"):
            member = tarfile.TarInfo(name)
            member.size = len(encode_png(pixels(5)))
            archive.addfile(member, io.BytesIO(encode_png(pixels(5))))
    data = read_labelled(tmp_path / "x.tar", GREY)
    assert (data.classes, data.labels.tolist()) == (("a", "z"), [1, 0])


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("as_folder", [False, True])
def test_idx_labels_lie_beside_the_images(tmp_path: Path, gz: bool, as_folder: bool) -> None:
    file = write_idx(tmp_path, bytes([2, 0, 2]), gz=gz)
    data = read_labelled(tmp_path if as_folder else file, GREY)
    assert (data.classes, data.labels.tolist()) == (("0", "1", "2"), [2, 0, 2])
    assert data.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    taken = data.take(np.array([2, 1]))
    assert (taken.images[:, 0, 0, 0].tolist(), taken.labels.tolist(), taken.classes) == ([2, 1], [2, 0], data.classes)


@pytest.mark.parametrize(
    ("labels", "count", "magic"), [(b"\0\1", None, 0x801), (b"\0\1\2", 2, 0x801), (b"\0\1\2", None, 0x803)]
)
def test_other_labels_are_refused(tmp_path: Path, labels: bytes, count: int | None, magic: int) -> None:
    file = write_idx(tmp_path, labels, count, magic)
    with pytest.raises(DataError, match="train-labels-idx1-ubyte: not the labels of the 3 images"):
        read_labelled(file, GREY)


def test_missing_labels_are_named(tmp_path: Path) -> None:
    file = write_idx(tmp_path, b"\0\1\2")
    file.with_name("train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte: cannot read the labels of train-images"):
        read_labelled(file, GREY)


def test_one_folder_is_no_classes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(pixels(0)))
    with pytest.raises(DataError, match="no classes found; put the images of each class in a folder"):
        read_labelled(tmp_path, GREY)
