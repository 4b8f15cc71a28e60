"""Atomic writes: an error in the middle leaves the old file, and nothing else."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ddaebm.model.files import encode_npy, write_file, write_folder, write_stream, write_zip


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    for contents in (b"old", b"new"):
        write_file(tmp_path / "file", contents)
        assert (tmp_path / "file").read_bytes() == contents
    assert names(tmp_path) == ["file"]


def test_what_a_kill_left_beside_a_file_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".file.partial").write_bytes(b"a long half of something")
    write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_a_folder_appears_when_it_is_full(tmp_path: Path) -> None:
    with write_folder(tmp_path / "deep" / "folder") as beside:
        (beside / "a").write_bytes(b"1")
        assert not (tmp_path / "deep" / "folder").exists()
    assert names(tmp_path / "deep") == ["folder"]
    assert (tmp_path / "deep" / "folder" / "a").read_bytes() == b"1"


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with write_folder(tmp_path / "folder") as beside:
            assert names(beside) == []
            (beside / name).touch()
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["new"]


def test_an_error_leaves_the_old_folder_and_nothing_beside_it(tmp_path: Path) -> None:
    with write_folder(tmp_path / "folder") as beside:
        (beside / "old").touch()

    def interrupted() -> None:
        with write_folder(tmp_path / "folder") as beside:
            (beside / "new").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["old"]


def test_what_kills_left_beside_a_folder_is_cleared(tmp_path: Path) -> None:
    for leftover in (".folder.partial", ".folder.old"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "junk").touch()
    with write_folder(tmp_path / "folder") as beside:
        (beside / "a").touch()
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["a"]


def test_npy_round_trip_refuses_pickles() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(np.load(io.BytesIO(encode_npy(array))), array)
    with pytest.raises(ValueError, match="pickle"):
        encode_npy(np.array([{}], dtype=object))


def test_a_stream_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail() -> None:
        with write_stream(path) as handle:
            handle.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"old", [path])
    with write_stream(path) as handle:
        handle.write(b"new")
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"new", [path])


def test_a_zip_of_the_same_members_is_the_same_bytes_and_can_be_unpacked() -> None:
    members = {"a.png": b"first", "b.png": b"second"}
    made = []
    for _ in range(2):
        buffer = io.BytesIO()
        write_zip(buffer, iter(members.items()))
        made.append(buffer.getvalue())
    assert made[0] == made[1]
    with zipfile.ZipFile(io.BytesIO(made[0])) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == members
