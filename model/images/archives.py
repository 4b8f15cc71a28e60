"""Read the images of .zip and .tar archives one by one, in constant memory, and count what is skipped."""

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from ddaebm.model.errors import DataError, ImageError, ImageFormatError
from ddaebm.model.images.folders import Skipped
from ddaebm.model.images.formats import BROKEN, Entry, is_image_name, read_whole

_LINK = "is a link; unpack the archive and give the folder"
_JOINED = "holds two archives, one behind the other; give them as two files"


def zip_entries(file: Path, skipped: Skipped) -> Iterator[Entry]:
    """The image files of a .zip, in its order. A damaged or encrypted member becomes an entry with an error.

    Raises:
        DataError: Another .zip precedes this one in the file. Its members would be left out.
    """
    with file.open("rb") as raw, zipfile.ZipFile(raw) as archive:
        members = archive.infolist()
        raw.seek(0)
        if raw.read(4) == b"PK\3\4" and min((member.header_offset for member in members), default=1) > 0:
            raise DataError(_JOINED)
        for member in members:
            if member.is_dir():
                continue
            if not is_image_name(member.filename):
                skipped.add_file(member.filename)
                continue
            yield Entry(f"{file}:{member.filename}", _unzip(archive, member))


def _unzip(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes | ImageError:
    if stat.S_ISLNK(member.external_attr >> 16):
        return ImageFormatError(_LINK)
    try:
        with archive.open(member) as handle:
            return read_whole(handle)
    except ImageError as error:
        return error
    except BROKEN as error:
        return ImageFormatError(f"cannot be unpacked ({error})")


def tar_entries(file: Path, skipped: Skipped) -> Iterator[Entry]:
    """The image files of a .tar, in its order; it may be compressed with gzip, bzip2, xz or zstd.

    A link becomes an entry with an error, since the file that it leads to has passed by, or is yet to come.

    Raises:
        DataError: The file ends without the mark of an archive's end, or goes on after it.
    """
    with file.open("rb") as raw, _decompress(raw) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # otherwise it keeps every header in memory
            if member.isdir():
                continue
            if not is_image_name(member.name):
                skipped.add_file(member.name)
                continue
            yield Entry(f"{file}:{member.name}", _untar(archive, member))
        _require_end(archive)


def _untar(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | ImageError:
    if not member.isfile():
        return ImageFormatError(_LINK if member.islnk() or member.issym() else "is not a file")
    handle = archive.extractfile(member)
    assert handle is not None  # because member.isfile()
    try:
        return read_whole(handle)
    except ImageError as error:
        return error


def _require_end(archive: Any) -> None:
    """Raise DataError unless the archive has ended with a block of zeros and nothing follows but zeros.

    tarfile also stops in silence at a damaged header, and where the file was cut between two members.
    """
    if archive.fileobj.tell() - archive.offset < tarfile.BLOCKSIZE:
        raise DataError("truncated: the archive has no end mark; copy it again")
    while chunk := archive.fileobj.read(2**16):
        if any(chunk):
            raise DataError(f"damaged, or it {_JOINED}")


def _decompress(raw: IO[bytes]) -> IO[bytes]:
    """The uncompressed content of `raw`. All streams that were joined in it are read, one after the other."""
    open_as: dict[bytes, Callable[[IO[bytes]], Any]] = {
        b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
        b"BZh": bz2.BZ2File,
        b"\xfd7zXZ": lzma.LZMAFile,
        b"\x28\xb5\x2f\xfd": lambda file: zstandard.ZstdDecompressor().stream_reader(
            file, read_across_frames=True, closefd=False
        ),
    }
    start = raw.read(6)
    raw.seek(0)
    stream: IO[bytes] = next((make(raw) for magic, make in open_as.items() if start.startswith(magic)), raw)
    return stream
