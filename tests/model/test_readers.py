"""A PATH to images: each kind of source, and each way for it to be malformed."""

import gzip
import io
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import zstandard
from numpy.typing import NDArray
from PIL import Image

from model import formats
from model.errors import DataError, ImageError
from model.images import Contract, encode_png
from model.readers import decode_entry, entries, find_contract, read_images


def images(count: int = 3, height: int = 4, width: int = 5, channels: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def read(path: str | Path) -> NDArray[np.uint8]:
    """As training on anybody's images does."""
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
    assert str(tmp_path / "two.npz") not in still_open, caught  # which holds the reader's frame alive


def test_npy_without_a_channel_axis_is_grey(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", images()[..., 0])
    np.testing.assert_array_equal(read(tmp_path / "a.npy"), images())


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_file_and_the_folder_that_holds_it(tmp_path: Path, suffix: str) -> None:
    raw = idx_bytes(images())
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix else raw)
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


IDX, GZ = idx_bytes(images()), gzip.compress(idx_bytes(images()))
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
    ("b-idx3-ubyte", raw(IDX + b"x"), "longer than its header says"),
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
        assert all(f"text{i}.png: not an image that can be read" in message for i in range(3))
        assert "text3.png" not in message
        assert message.endswith("; …; mend or remove them")


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


def write_archive(path: Path, members: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return path
    buffer = io.BytesIO()
    compression = {"gz": "gz", "bz2": "bz2", "xz": "xz"}.get(path.suffix[1:], "")
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    whole = buffer.getvalue()
    path.write_bytes(zstandard.compress(whole) if path.suffix == ".zst" else whole)
    return path


ARCHIVES = ["a.zip", "a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz", "a.tar.zst"]


def members(count: int = 3) -> dict[str, bytes]:
    """Images in an order of their own, beside what is no image."""
    pngs = {f"deep/er/{9 - i}.png": encode_png(image) for i, image in enumerate(images(count))}
    return {"README.md": b"words", "__MACOSX/._9.png": b"a resource fork", **pngs, "labels.csv": b"9,1"}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_is_read_in_its_own_order(tmp_path: Path, name: str) -> None:
    path = write_archive(tmp_path / name, members())
    np.testing.assert_array_equal(read(path), images())
    assert [entry.name for entry in entries(path)] == [f"{path}:deep/er/{i}.png" for i in (9, 8, 7)]


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_breaks_off_is_an_error_and_what_came_before_is_not_lost(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    path = write_archive(tmp_path / name, {f"{i}.png": encode_png(image) for i, image in enumerate(noise)})
    path.write_bytes(path.read_bytes()[:-60_000])
    seen = []
    with pytest.raises(DataError, match="cannot be read") as caught:
        seen.extend(entries(path))
    assert str(path) in str(caught.value)
    if name in ("a.tar", "a.tar.gz"):  # the others come in blocks that are larger than all of it, or list it at the end
        assert len(seen) > 10


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_without_images_is_an_error(tmp_path: Path, name: str) -> None:
    path = write_archive(tmp_path / name, {"notes.txt": b"words"})
    with pytest.raises(DataError, match=r"no images in it; files ending in \.bmp"):
        read(path)


@pytest.mark.parametrize("name", ["text.zip", "text.tar", "text.tar.gz", "text.tar.zst"])
def test_what_is_no_archive_is_a_data_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"these are words" * 100)
    with pytest.raises(DataError, match=name):
        read(tmp_path / name)


def test_a_member_of_a_zip_that_is_broken_costs_that_image_alone(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.zip", members())
    raw_bytes = bytearray(path.read_bytes())
    start = raw_bytes.index(encode_png(images()[1]))
    raw_bytes[start + 20] ^= 0xFF  # the checksum of the zip notices
    path.write_bytes(raw_bytes)
    contents = [entry.content for entry in entries(path)]
    assert [isinstance(content, bytes) for content in contents] == [True, False, True]
    with pytest.raises(DataError, match=r"1 of 3 files cannot be used: .*8\.png: cannot be unpacked"):
        read(path)


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_a_member_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "MAX_FILE_BYTES", 2**20)
    path = write_archive(tmp_path / name, {"bomb.png": bytes(2**20 + 1), **members()})
    bomb, *rest = entries(path)
    with pytest.raises(ImageError, match="over 1 MiB"):
        decode_entry(bomb, Contract(4, 5, 1))
    assert len(rest) == 3


def test_an_array_is_read_row_by_row_and_a_short_one_is_an_error_after_its_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", images(5))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1])
    seen = []
    with pytest.raises(DataError, match=r"a\.npy: truncated: 4 of 5 images are there"):
        seen.extend(entries(tmp_path / "a.npy"))
    np.testing.assert_array_equal([entry.content for entry in seen], images(5)[:4])
    assert seen[1].name == f"{tmp_path / 'a.npy'}[1]"


def test_an_array_in_fortran_order_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.asfortranarray(images()))
    with pytest.raises(DataError, match="Fortran order"):
        read(tmp_path / "a.npy")


NPY_HEADS = [
    b"{'descr': (",
    b"{'descr': '''abc",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (" + b"9" * 5000 + b",), }",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4, 5), }",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (True, 4, 5), }",
    b"{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (1, 4, 5), }",
    b"{'descr': '|u1', 'fortran_order': 0, 'shape': (1, 4, 5), }",
    b"{'descr': '|u1', 'shape': (1, 4, 5), }",
    b"\0" * 100,
    b"(" * 1000,
    b"__import__('os').abort()",
    b"",
]


@pytest.mark.parametrize("head", NPY_HEADS, ids=range(len(NPY_HEADS)))
@pytest.mark.parametrize("version", [1, 2, 3, 9])
def test_a_hostile_npy_header_is_a_data_error(head: bytes, version: int) -> None:
    length = struct.pack("<H" if version == 1 else "<I", len(head) + 1)
    with pytest.raises(DataError, match=r"not a readable \.npy array"):
        formats.npy_shape(io.BytesIO(b"\x93NUMPY" + bytes([version, 0]) + length + head + b"\n" + bytes(20)))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 4, 5, 3), (1, 1, 1, 1)])
def test_every_version_of_npy_is_read(version: tuple[int, int], shape: tuple[int, ...]) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.zeros(shape, np.uint8), version=version)
    buffer.seek(0)
    assert formats.npy_shape(buffer) == (*shape, 1)[:4]
    assert len(buffer.read()) == np.prod(shape)


def test_a_header_that_claims_more_than_memory_allocates_nothing(tmp_path: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 4, 5), }"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(20))
    with pytest.raises(DataError, match="1 of 1000000000 images are there"):
        read(tmp_path / "a.npy")


def test_hub_reads_a_local_folder_through_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    for split, data in (("train", images()), ("test", images()[:1])):
        for label in ("a", "b"):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            for i, image in enumerate(data):
                (tmp_path / "set" / split / label / f"{i}.png").write_bytes(encode_png(image))
    np.testing.assert_array_equal(read("hf:./set"), np.concatenate([images(), images()]))
    assert len(read("hf:./set:test")) == 2
    with pytest.raises(DataError, match=r"hf:\./set:nothing: "):
        read("hf:./set:nothing")


def test_hub_without_its_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="hub extra"):
        read("hf:anything")
