"""Reading a PATH: every kind of source, and every way in which it can be malformed."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image

from ddaebm.model.errors import DataError
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.encode import encode_png
from ddaebm.model.images.readers import find_contract, read_images


def images(count: int = 3, height: int = 4, width: int = 5, channels: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def read(path: str | Path) -> NDArray[np.uint8]:
    """Read all images of `path` with the contract that `find_contract` finds, as training does."""
    return read_images(path, find_contract(path))


def idx_bytes(data: NDArray[np.uint8], magic: int = 0x803) -> bytes:
    return struct.pack(">4I", magic, *data.shape[:3]) + data.tobytes()


def write_folder(folder: Path, data: NDArray[np.uint8]) -> Path:
    (folder / "deeper").mkdir(parents=True)
    for i, image in enumerate(data):
        (folder / ("deeper" if i % 2 else ".") / f"{i}.{'PNG' if i == 2 else 'png'}").write_bytes(encode_png(image))
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_of_images_is_read_in_the_order_of_its_paths(tmp_path: Path, channels: int) -> None:
    data = images(channels=channels)
    np.testing.assert_array_equal(
        read(write_folder(tmp_path / "folder", data)), data[[0, 2, 1]]
    )  # 0.png, 2.PNG, deeper/1.png


def test_one_image_file(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(encode_png(images()[0]))
    np.testing.assert_array_equal(read(tmp_path / "one.png"), images()[:1])


@pytest.mark.parametrize("channels", [1, 3])
def test_npy_and_npz(tmp_path: Path, channels: int) -> None:
    data = images(channels=channels)
    np.save(tmp_path / "a.npy", data)
    np.savez(tmp_path / "b.npz", anything=data)
    np.testing.assert_array_equal(read(tmp_path / "a.npy"), data)
    np.testing.assert_array_equal(read(tmp_path / "b.npz"), data)


def test_an_archive_of_several_arrays_is_refused_and_closed(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", first=images(), second=images())
    with pytest.raises(DataError, match=r"two.npz: holds 2 arrays \(first, second\)") as caught:
        read(tmp_path / "two.npz")
    still_open = [file.path for file in psutil.Process().open_files()]
    assert str(tmp_path / "two.npz") not in still_open, (
        caught
    )  # the traceback in `caught` keeps the reader's frame alive


def test_npy_without_a_channel_axis_is_grey(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", images()[..., 0])
    np.testing.assert_array_equal(read(tmp_path / "a.npy"), images())


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_file_and_the_folder_that_holds_it(tmp_path: Path, suffix: str) -> None:
    raw = idx_bytes(images())
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(gzip.compress(raw, mtime=0) if suffix else raw)
    np.testing.assert_array_equal(read(path), images())
    np.testing.assert_array_equal(read(tmp_path), images())


def test_a_contract_does_the_same_to_files_and_to_arrays(tmp_path: Path) -> None:
    contract = Contract(8, 6, 3)
    np.save(tmp_path / "a.npy", images()[[0, 2, 1]])
    of_files = read_images(write_folder(tmp_path / "folder", images()), contract)
    assert of_files.shape == (3, 8, 6, 3)
    np.testing.assert_array_equal(read_images(tmp_path / "a.npy", contract), of_files)
    np.testing.assert_array_equal(read_images(tmp_path / "a.npy", Contract(4, 5, 1)), images()[[0, 2, 1]])


def npy(array: NDArray[np.generic], pickle: bool = False) -> Callable[[Path], None]:
    return lambda path: np.save(path, array, allow_pickle=pickle)


def raw(contents: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(contents) and None


IDX, GZ = idx_bytes(images()), gzip.compress(idx_bytes(images()), mtime=0)
MALFORMED = [
    ("missing.npy", None, "no such file or folder"),
    ("notes.txt", raw(b"text"), "not a folder"),
    ("object.npy", npy(np.array([{}, {}], dtype=object), pickle=True), r"dtype \|O; images must be uint8"),
    ("float.npy", npy(np.zeros((3, 4, 5, 1))), "dtype <f8; images must be uint8"),
    ("int16.npy", npy(np.zeros((3, 4, 5), np.int16)), "dtype <i2"),
    ("flat.npy", npy(np.zeros((3, 20), np.uint8)), r"shape \(3, 20\)"),
    ("four.npy", npy(np.zeros((3, 4, 5, 4), np.uint8)), r"shape \(3, 4, 5, 4\)"),
    ("five.npy", npy(np.zeros((1, 3, 4, 5, 1), np.uint8)), "shape"),
    ("none.npy", npy(np.zeros((0, 4, 5, 1), np.uint8)), "shape"),
    ("empty.npy", raw(b""), "not a readable .npy array"),
    ("text.npy", raw(b"these are words"), "not a readable .npy array"),
    ("cut.npy", raw(b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran"), "not a readable .npy array"),
    ("a-idx3-ubyte", raw(IDX[:-1]), "truncated"),
    ("b-idx3-ubyte", raw(IDX + b"x"), "longer than its header states"),
    ("c-idx3-ubyte", raw(IDX[:10]), "cannot be read|truncated"),
    ("d-idx3-ubyte", raw(idx_bytes(images(), magic=0x801)), "not an IDX file of images"),
    ("e-idx3-ubyte", raw(idx_bytes(images(count=0))), "not an IDX file of images"),
    ("f-idx3-ubyte.gz", raw(GZ[:-20]), "cannot be read|truncated"),
    ("g-idx3-ubyte.gz", raw(IDX), "cannot be read|truncated"),
    ("h-idx3-ubyte.gz", raw(GZ[:10] + b"\xff" * 40), "cannot be read|truncated"),
    ("cut.npz", raw(b"PK\x03\x04 and then nothing"), "cannot be read"),
    ("broken.png", raw(b"not a png"), "1 of 1 files cannot be used"),
]


@pytest.mark.parametrize(("name", "write", "message"), MALFORMED, ids=[row[0] for row in MALFORMED])
def test_malformed_source_is_a_data_error_that_names_it(
    tmp_path: Path, name: str, write: Callable[[Path], None] | None, message: str
) -> None:
    if write:
        write(tmp_path / name)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)


def test_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(DataError, match="no images"):
        read(tmp_path)


def test_files_that_are_no_images_are_counted_and_the_first_three_named(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"good{i}.png").write_bytes(encode_png(images()[0]))
        (tmp_path / f"text{i}.png").write_bytes(b"no image")
    (tmp_path / "torn.png").write_bytes(encode_png(images()[0])[:30])
    for function in (find_contract, lambda path: read_images(path, Contract(4, 5, 1))):
        with pytest.raises(DataError, match="5 of 9 files cannot be used") as caught:
            function(tmp_path)
        message = str(caught.value)
        assert all(f"text{i}.png: not a readable image" in message for i in range(3))
        assert "text3.png" not in message
        assert message.endswith("; …; repair or remove them")


def test_images_that_are_not_alike_are_counted_by_kind_with_what_to_do(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"a{i}.png").write_bytes(encode_png(images()[0]))
    for i in range(2):
        (tmp_path / f"b{i}.png").write_bytes(encode_png(images(height=7, width=6)[0]))
    (tmp_path / "c.png").write_bytes(encode_png(images(channels=3)[0]))
    with pytest.raises(DataError) as caught:
        find_contract(tmp_path)
    message = str(caught.value)
    assert "8 images are not alike: 5 are 5x4 grey" in message
    assert f"2 are 6x7 grey ({tmp_path / 'b0.png'}, {tmp_path / 'b1.png'})" in message
    assert f"1 is 5x4 colour ({tmp_path / 'c.png'})" in message
    assert message.endswith("Give --size N to resize all and --channels 1 or 3 to convert all")
    with pytest.raises(DataError, match=r"7 are 16x16 grey .*; 1 is 16x16 colour .*\. Give --channels 1 or 3"):
        find_contract(tmp_path, size=(16, 16))
    assert find_contract(tmp_path, (16, 12), 3) == Contract(16, 12, 3)


def test_a_rotated_photo_decides_the_size_by_how_it_is_shown(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for name in ("a.png", "b.png"):
        Image.fromarray(images()[0, ..., 0]).save(tmp_path / name, exif=exif)
    np.testing.assert_array_equal(read(tmp_path), [np.rot90(images()[0], -1)] * 2)


def test_mixed_sizes_are_welcome_under_a_contract(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(images()[0]))
    (tmp_path / "b.png").write_bytes(encode_png(images(height=9)[0]))
    assert read_images(tmp_path, Contract(4, 4, 1)).shape == (2, 4, 4, 1)
