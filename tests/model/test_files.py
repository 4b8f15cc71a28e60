"""Atomic writes: an error in the middle leaves the old file, and nothing else."""

import errno
import io
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from ddaebm.model.files import (
    encode_npy,
    naming,
    require_writable,
    write_file,
    write_folder,
    write_stream,
    write_zip,
)


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


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "file").symlink_to("disk/file")
    (tmp_path / "folder").symlink_to("disk/folder")  # both lead nowhere yet
    for contents in (b"old", b"new"):
        write_file(tmp_path / "file", contents)
        with write_folder(tmp_path / "folder") as beside:
            (beside / "a").write_bytes(contents)
        assert (
            (tmp_path / "disk" / "file").read_bytes() == (tmp_path / "disk" / "folder" / "a").read_bytes() == contents
        )
        with write_stream(tmp_path / "file") as handle:
            handle.write(b"stream")
        assert (tmp_path / "disk" / "file").read_bytes() == b"stream"
    assert (tmp_path / "file").is_symlink()
    assert (tmp_path / "folder").is_symlink()
    assert names(tmp_path) == ["disk", "file", "folder"]
    assert names(tmp_path / "disk") == ["file", "folder"]


def fill(folder: Path, **files: bytes) -> None:
    with write_folder(folder, last="last") as beside:
        for name, contents in files.items():
            (beside / name).write_bytes(contents)


@pytest.fixture(params=["a mount point of its own disk", "one of the same disk", "a parent that may not be written"])
def fixed(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that cannot be renamed."""
    folder = tmp_path / "fixed"
    folder.mkdir()
    replace, access = os.replace, os.access
    number = errno.EXDEV if "own disk" in request.param else errno.EBUSY

    def mounted(source: Path, target: Path) -> None:
        if folder in (Path(source), Path(target)):
            raise OSError(number, os.strerror(number), str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", mounted)
    if "parent" in request.param:
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
    return folder


def test_a_folder_that_cannot_be_renamed_is_filled(fixed: Path) -> None:
    fill(fixed, last=b"1", a=b"1", b=b"1")
    fill(fixed, last=b"2", b=b"2", c=b"2")
    assert names(fixed) == ["b", "c", "last"]
    assert (fixed / "b").read_bytes() == (fixed / "last").read_bytes() == b"2"
    assert names(fixed.parent) == ["fixed"]


def test_a_folder_that_is_filled_has_its_last_file_only_when_it_is_whole(
    fixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(fixed, last=b"1", a=b"1", b=b"1")
    for stop in range(1, 12):  # after so many changes the process is killed
        changes = 0

        def counting(call: Callable[..., object], stop: int = stop) -> Callable[..., object]:
            def change(*args: object, **options: object) -> object:
                nonlocal changes
                changes += 1
                if changes > stop:
                    raise KeyboardInterrupt
                return call(*args, **options)

            return change

        version = bytes([stop])
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", counting(os.replace))
            patch.setattr(Path, "unlink", counting(Path.unlink))
            with suppress(KeyboardInterrupt):
                fill(fixed, last=version, a=version, b=version)
        if (fixed / "last").exists():
            read = {(fixed / name).read_bytes() for name in ("a", "b", "last")}
            assert len(read) == 1
        fill(fixed, last=b"9", a=b"9", b=b"9")
        assert names(fixed) == ["a", "b", "last"]


def full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_names_the_file_and_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "a", b"old")
    fill(tmp_path / "f", a=b"old")
    monkeypatch.setattr(os, "fsync", full)

    def stream() -> None:
        with write_stream(tmp_path / "a") as handle:
            handle.write(b"new")

    for write, name in (
        (lambda: write_file(tmp_path / "a", b"new"), "a"),
        (stream, "a"),
        (lambda: fill(tmp_path / "f", a=b"new"), "f"),
    ):
        with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / name}'"):
            write()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "f" / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a", "f"]


def test_an_error_that_names_its_file_keeps_the_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"), naming(tmp_path):
        (tmp_path / "missing").read_bytes()


def test_what_cannot_be_written_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    require_writable(tmp_path / "new" / "deep" / "a")
    require_writable(tmp_path / "file")
    with pytest.raises(NotADirectoryError, match="file"):
        require_writable(tmp_path / "file" / "a")
    (tmp_path / "open").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(PermissionError, match=str(tmp_path)):
        require_writable(tmp_path / "a")
    require_writable(tmp_path / "open")  # which can be filled
    assert names(tmp_path) == ["file", "open"]
