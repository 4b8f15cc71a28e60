"""Archives, arrays and data sets are streamed; damage costs as few images as possible."""

import io
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zstandard

from ddaebm.model.errors import DataError, ImageError
from ddaebm.model.images import formats
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.encode import encode_png
from ddaebm.model.images.readers import decode_entry, entries
from tests.model.images.test_readers import images, read


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
    """Images in an unsorted order, and files that are not images."""
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
    if name in ("a.tar", "a.tar.gz"):  # the other formats compress in larger blocks, or have their index at the end
        assert len(seen) > 10


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_without_images_is_an_error(tmp_path: Path, name: str) -> None:
    path = write_archive(tmp_path / name, {"notes.txt": b"words"})
    with pytest.raises(DataError, match=r"no images found; give files ending in \.bmp"):
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
    raw_bytes[start + 20] ^= 0xFF  # detected by the checksum of the zip
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
    with pytest.raises(DataError, match=r"a\.npy: truncated: it holds 4 of 5 images"):
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
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (1, 4, 5), " + b" " * 10_000 + b"}",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (1.0, 4, 5), }",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': [1, 4, 5], }",
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


def written(array: np.ndarray, version: tuple[int, int] = (1, 0), pad: int = 0) -> io.BytesIO:
    """An .npy with `pad` blanks at the end of its header."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version)
    data, width = buffer.getvalue(), 2 if version == (1, 0) else 4
    end = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    head = data[8 + width : end - 1] + b" " * pad + b"\n"
    return io.BytesIO(data[:8] + len(head).to_bytes(width, "little") + head + data[end:])


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("pad", [0, 900, 2_000, 9_000])
def test_a_long_header_is_no_pixels(version: tuple[int, int], pad: int) -> None:
    (pixels,) = formats.npy_images(written(images()[:1], version, pad))
    np.testing.assert_array_equal(pixels, images()[0])


@pytest.mark.parametrize("version", [(9, 0), (0, 0), (1, 1)])
def test_an_unknown_version_is_refused(version: tuple[int, int]) -> None:
    data = bytearray(written(images()).getvalue())
    data[6:8] = bytes(version)
    with pytest.raises(DataError, match=r"not a readable \.npy array"):
        formats.npy_shape(io.BytesIO(bytes(data)))


@pytest.mark.parametrize(
    ("shape", "channels", "found"),
    [((28, 20, 3), 3, (1, 28, 20, 3)), ((28, 20, 1), 1, (1, 28, 20, 1)), ((28, 20, 1), None, (1, 28, 20, 1)),
     ((28, 20, 1), 3, (1, 28, 20, 1)), ((28, 20, 4), 3, (28, 20, 4, 1)), ((5, 28, 3, 1), 1, (5, 28, 3, 1))],
)  # fmt: skip
def test_three_axes_of_which_the_last_is_the_channels_are_one_image(
    shape: tuple[int, ...], channels: int | None, found: tuple[int, ...]
) -> None:
    assert formats.npy_shape(written(np.zeros(shape, np.uint8)), channels) == found


@pytest.mark.parametrize("channels", [1, None])
def test_a_colour_image_for_a_grey_model_is_ambiguous(channels: int | None, tmp_path: Path) -> None:
    array = np.zeros((28, 20, 3), np.uint8)
    for name in ("a.npy", "a.npz"):
        (np.save if name == "a.npy" else np.savez)(tmp_path / name, array)
        with pytest.raises(DataError, match=r"28 grey images of 20x3 pixels, or one colour.*\(28, 20, 3, 1\).*\(1, 28"):
            next(entries(tmp_path / name, channels))
    assert len(list(entries(tmp_path / "a.npy", 3))) == 1


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_what_follows_the_array_is_an_error(name: str, tmp_path: Path) -> None:
    data = written(images()).getvalue() + b"x"
    if name == "a.npz":
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("images.npy", data)
    else:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match="longer than its header states"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("header", "words"),
    [("'|u1', 'fortran_order': False, 'shape': (-1, 4, 5)", "shape"),
     ("'|u1', 'fortran_order': False, 'shape': ()", "shape"),
     ("'|u1', 'fortran_order': False, 'shape': (" + "9" * 4000 + ", 4, 5)", "shape"),
     ("[('a', '|u1')], 'fortran_order': False, 'shape': (1, 4, 5)", "dtype"),
     ("'|V9', 'fortran_order': False, 'shape': (1, 4, 5)", "dtype"),
     ("'|i1', 'fortran_order': False, 'shape': (4, 4, 5)", "dtype"),
     ("'O', 'fortran_order': False, 'shape': (4, 4, 5)", "dtype")],
    ids=range(7),
)  # fmt: skip
def test_other_arrays_are_refused_in_a_short_line(header: str, words: str) -> None:
    head = f"{{'descr': {header}, }}\n".encode()
    with pytest.raises(DataError, match=words) as refused:
        formats.npy_shape(io.BytesIO(b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head))
    assert len(str(refused.value)) < 250


def test_damaged_headers_are_data_errors() -> None:
    whole, dice = written(images()).getvalue(), np.random.default_rng(0)
    refused = []
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(dice.integers(1, 5)):
            data[dice.integers(0, 130)] = dice.choice(list(b"(){}[],:'\"\\\0\n 019-.eEx_luVO<>|\xff"))
        try:
            formats.npy_shape(io.BytesIO(bytes(data)))
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > 1000
    assert max(map(len, refused)) < 250


def test_a_header_that_claims_more_than_memory_allocates_nothing(tmp_path: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 4, 5), }"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(20))
    with pytest.raises(DataError, match="it holds 1 of 1000000000 images"):
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
