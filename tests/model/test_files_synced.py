"""Files are on the disk before their names are, in the order that a power failure cannot spoil."""

import os
from pathlib import Path

import pytest

from ddaebm.model.files import write_file, write_stream
from tests.model import test_files
from tests.model.test_files import fill

fixed = test_files.fixed  # the fixture


class Disk:
    """Records what reaches the disk, in order: writes to files that are open, syncs, renames."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, str]] = []
        fsync, replace = os.fsync, os.replace

        def synced(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            size = "folder" if path.is_dir() else str(path.stat().st_size)  # what Python has not written is not synced
            self.events.append((f"sync {size}", path.name))
            fsync(descriptor)

        def replaced(source: Path, target: Path) -> None:
            self.events.append(("rename", f"{Path(source).name} -> {Path(target).name}"))
            replace(source, target)

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(os, "replace", replaced)


def test_a_file_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d").mkdir()
    disk = Disk(monkeypatch)
    write_file(tmp_path / "d" / "a", b"12345")
    beside = ".a.partial"
    assert disk.events == [("sync 5", beside), ("rename", f"{beside} -> a"), ("sync folder", "d")]

    disk.events.clear()
    with write_stream(tmp_path / "d" / "a") as handle:
        handle.write(b"1234567")
    beside = f".a.{os.getpid()}.partial"
    assert disk.events == [("sync 7", beside), ("rename", f"{beside} -> a"), ("sync folder", "d")]

    disk.events.clear()
    write_file(tmp_path / "d" / "a", b"1", sync=False)
    assert disk.events == [("rename", ".a.partial -> a")]


def test_a_folder_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d").mkdir()
    disk = Disk(monkeypatch)
    for _ in range(2):
        disk.events.clear()
        fill(tmp_path / "d" / "f", a=b"1", b=b"22")
    assert sorted(disk.events[:2]) == [("sync 1", "a"), ("sync 2", "b")]
    assert disk.events[2:] == [("sync folder", ".f.partial"), ("rename", "f -> .f.old"),
                               ("rename", ".f.partial -> f"), ("sync folder", "d")]  # fmt: skip


def test_files_that_are_replaced_one_by_one_are_on_the_disk_before_the_last(
    fixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(fixed, last=b"1", a=b"1")
    disk = Disk(monkeypatch)
    fill(fixed, last=b"22", a=b"22")
    events = [event for event in disk.events if ".fixed" not in event[1]]
    places = [events.index(("sync 2", name)) for name in ("a", "last")]
    renames = [events.index(("rename", f"{name} -> {name}")) for name in ("a", "last")]
    assert max(places) < min(renames)
    assert renames[0] < renames[1]
    assert ("sync folder", "fixed") in events[max(places) : min(renames)]  # the old `last` is gone by then
    assert ("sync folder", "fixed") in events[renames[0] :]
