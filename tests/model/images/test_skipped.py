"""Nothing in a folder or archive is left out in silence: it is read, or an entry with an error, or counted."""

import bz2
import gzip
import io
import logging
import lzma
import os
import socket
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from ddaebm.model.errors import DataError, ImageError
from ddaebm.model.images.encode import encode_png
from ddaebm.model.images.formats import Entry
from ddaebm.model.images.readers import entries, find_contract
from tests.model.images.test_formats import write_archive
from tests.model.images.test_readers import idx_bytes, images

PNG = encode_png(images()[0])


def put(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)
    return folder


def read(path: Path) -> tuple[list[str], dict[str, str]]:
    """Names of the images of `path`, relative to it, and the errors by name."""
    found = list(entries(path))

    def name(entry: Entry) -> str:
        return entry.name.removeprefix(str(path)).lstrip("/:")

    good = [name(entry) for entry in found if not isinstance(entry.content, ImageError)]
    return good, {name(entry): str(entry.content) for entry in found if isinstance(entry.content, ImageError)}


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    caplog.set_level(logging.WARNING)
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("suffix", [".png", ".jfif", ".jpe", ".JFIF", ".tif", ".bmp"])
def test_common_suffixes_are_read(tmp_path: Path, suffix: str) -> None:
    assert read(put(tmp_path, f"a{suffix}"))[0] == [f"a{suffix}"]


def test_skipped_files_and_folders_are_counted_by_kind(tmp_path: Path, told: Callable[[], str]) -> None:
    put(tmp_path, "a.png", ".b.png", "c.heic", "d.HEIC", "e.txt", "noext", ".git/f.png", ".cache/g.png")
    assert read(tmp_path) == (["a.png"], {})
    assert told() == (
        f"{tmp_path}: 5 files skipped: 2 .heic, 1 hidden, 1 .txt, 1 without a suffix; 2 folders skipped: 2 hidden"
    )


def test_many_kinds_are_summed(tmp_path: Path, told: Callable[[], str]) -> None:
    read(put(tmp_path, "a.png", *(f"b.x{i}" for i in range(9)), "c.x0"))
    assert "10 files skipped: 2 .x0, " in told()
    assert told().endswith(", 4 of other kinds")


def test_a_folder_is_told_once_although_training_reads_it_twice(tmp_path: Path, told: Callable[[], str]) -> None:
    put(tmp_path, "a.png", "b.txt")
    find_contract(tmp_path)
    assert told() == ""


def test_a_folder_of_skipped_files_alone_is_an_error_that_counts_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no images found.*\(1 file skipped: 1 \.heic\)"):
        read(put(tmp_path, "c.heic"))


def test_linked_folders_are_followed_once_and_after_all_else(tmp_path: Path, told: Callable[[], str]) -> None:
    root, elsewhere = put(tmp_path / "root", "real/a.png"), put(tmp_path / "elsewhere", "b.png", "deep/c.png")
    (root / "0 link").symlink_to(root / "real")
    (root / "1 link").symlink_to(elsewhere)
    (root / "real" / "loop").symlink_to(root)
    (elsewhere / "deep" / "loop").symlink_to("..")
    assert read(root) == (["real/a.png", "1 link/b.png", "1 link/deep/c.png"], {})
    assert "3 folders skipped: 3 link to a folder that was read already" in told()


def test_many_links_to_one_another_are_read_in_no_time(tmp_path: Path) -> None:
    for level in range(40):  # 2 to the power of 40 paths
        put(tmp_path, f"{level}/a.png")
        for name in ("x", "y"):
            (tmp_path / str(level) / name).symlink_to(tmp_path / str((level + 1) % 40))
    assert len(read(tmp_path)[0]) == 40


def test_links_to_images_are_read_and_broken_links_are_errors(tmp_path: Path) -> None:
    root = put(tmp_path / "root", "a.png")
    put(tmp_path, "outside.png")
    (root / "b.png").symlink_to(tmp_path / "outside.png")
    (root / "c.png").symlink_to(tmp_path / "missing.png")
    (root / "folder").symlink_to(tmp_path / "not mounted")
    (root / "self.png").symlink_to("self.png")
    good, errors = read(root)
    assert good == ["a.png", "b.png"]
    assert set(errors) == {"c.png", "folder", "self.png"}
    assert all("cannot be read" in error for error in errors.values())


def test_pipes_sockets_and_devices_are_errors_and_not_waited_for(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "s.png"))
        good, errors = read(tmp_path)
    assert good == ["a.png"]
    assert set(errors) == {"pipe.png", "zero.png", "s.png"}
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(DataError, match="not a regular file"):
        read(tmp_path / "a.tar")


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder, and this process as a user whom permissions bind, also where the tests run as root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)
            for path in Path(folder).rglob("*"):
                path.chmod(0o700)


def test_an_unreadable_folder_or_file_is_an_error(unprivileged: Path) -> None:
    put(unprivileged, "a.png", "b.png", "locked/c.png", "no entry/d.png")
    (unprivileged / "b.png").chmod(0)
    (unprivileged / "locked").chmod(0)
    (unprivileged / "no entry").chmod(stat.S_IRUSR)  # may be listed, but its files may not be opened
    good, errors = read(unprivileged)
    assert good == ["a.png"]
    assert set(errors) == {"b.png", "locked", "no entry/d.png"}
    assert "Permission denied); check the folder" in errors["locked"]


RUN = ["config.json", "metrics.jsonl", "samples/step-0000500.png"]
OUTPUTS = {"run": RUN, "bundle": ["bundle.json", "samples.png"], "figure": ["metrics.json", "figure.png"]}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_pictures_that_ddaebm_has_written_are_no_data(tmp_path: Path, kind: str, told: Callable[[], str]) -> None:
    put(tmp_path, "a.png", *(f"out/{name}" for name in OUTPUTS[kind]))
    assert read(tmp_path)[0] == ["a.png"]
    assert f"1 folder skipped: 1 {kind}" in told()
    with pytest.raises(DataError, match=f"no images found.*1 folder skipped: 1 {kind}"):
        read(tmp_path / "out")


def test_a_folder_with_an_idx_file_and_images_is_refused(tmp_path: Path, told: Callable[[], str]) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(images()))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"")
    assert len(read(tmp_path)[0]) == 3
    assert "1 file skipped: 1 without a suffix" in told()
    put(tmp_path, "deep/a.png")
    with pytest.raises(DataError, match=r"an IDX file \(train-images-idx3-ubyte\) and also images \(.*a\.png\)"):
        read(tmp_path)


def test_skipped_members_of_archives_are_counted(tmp_path: Path, told: Callable[[], str]) -> None:
    for name in ("a.zip", "a.tar"):
        read(write_archive(tmp_path / name, {"a.png": PNG, "b.txt": b"", "__MACOSX/._a.png": b"", "c.txt": b""}))
        assert f"{name}: 3 files skipped: 2 .txt, 1 hidden" in told()


def tar(*members: tuple[str, bytes | tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "a.png") -> tuple[str, tarfile.TarInfo]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return name, info


def test_links_in_archives_are_errors(tmp_path: Path, told: Callable[[], str]) -> None:
    (tmp_path / "a.tar").write_bytes(tar(
        ("a.png", PNG), special("hard.png", tarfile.LNKTYPE), special("soft.png", tarfile.SYMTYPE),
        special("pipe.png", tarfile.FIFOTYPE), special("folder", tarfile.SYMTYPE), special("d.png", tarfile.DIRTYPE),
    ))  # fmt: skip
    good, errors = read(tmp_path / "a.tar")
    assert (good, set(errors)) == (["a.png"], {"hard.png", "soft.png", "pipe.png"})
    assert "is a link" in errors["hard.png"]
    assert "1 file skipped" in told()

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", PNG)
        link = zipfile.ZipInfo("soft.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "a.png")
    good, errors = read(tmp_path / "a.zip")
    assert (good, set(errors)) == (["a.png"], {"soft.png"})


COMPRESS = {
    "tar": bytes, "tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress,
    "tar.zst": zstandard.compress,
}  # fmt: skip
FIRST, SECOND = tar(("a.png", PNG)), tar(("b.png", PNG))


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_second_archive_behind_the_first_is_an_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    for data in (COMPRESS[kind](FIRST) + COMPRESS[kind](SECOND), COMPRESS[kind](FIRST + SECOND)):
        path.write_bytes(data)
        seen = []
        with pytest.raises(DataError, match="two archives, one behind the other"):
            seen.extend(entries(path))
        assert len(seen) == 1


@pytest.mark.parametrize("kind", [kind for kind in COMPRESS if kind != "tar"])
def test_one_archive_in_several_compressed_pieces_is_read_whole(tmp_path: Path, kind: str) -> None:
    whole = tar(("a.png", PNG), ("b.png", PNG))
    compress = COMPRESS[kind]
    (tmp_path / f"a.{kind}").write_bytes(compress(whole[:700]) + compress(whole[700:]))
    assert read(tmp_path / f"a.{kind}")[0] == ["a.png", "b.png"]


def test_a_compressed_archive_is_read_whatever_its_suffix_says(tmp_path: Path) -> None:
    for kind, compress in COMPRESS.items():
        path = tmp_path / f"{kind}.tar"
        path.write_bytes(compress(FIRST))
        assert read(path)[0] == ["a.png"]


def test_a_zip_behind_another_is_an_error(tmp_path: Path) -> None:
    first, second = (write_archive(tmp_path / f"{n}.zip", {f"{n}.png": PNG}) for n in "ab")
    (tmp_path / "both.zip").write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(DataError, match="two archives"):
        read(tmp_path / "both.zip")
    (tmp_path / "program.zip").write_bytes(b"#!/bin/sh a program that unpacks itself\n" + first.read_bytes())
    assert read(tmp_path / "program.zip")[0] == ["a.png"]


def test_a_tar_that_is_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    whole = tar(*((f"{i}.png", PNG) for i in range(3)))
    end = 3 * (512 + -(-len(PNG) // 512) * 512)
    for length in range(0, end + 1, 256):
        (tmp_path / "a.tar").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.tar"):
            read(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(whole[: end + 512])
    assert len(read(tmp_path / "a.tar")[0]) == 3


def test_a_damaged_header_does_not_end_an_archive_in_silence(tmp_path: Path) -> None:
    damaged = bytearray(tar(*((f"{i}.png", PNG) for i in range(3))))
    damaged[512 + -(-len(PNG) // 512) * 512 + 148] ^= 0xFF  # the checksum of the second header
    (tmp_path / "a.tar").write_bytes(damaged)
    with pytest.raises(DataError, match="damaged"):
        read(tmp_path / "a.tar")


def test_an_image_that_is_given_by_name_is_read_although_it_is_hidden(tmp_path: Path) -> None:
    put(tmp_path, ".hidden.png")
    (entry,) = entries(tmp_path / ".hidden.png")
    assert entry.content == PNG
