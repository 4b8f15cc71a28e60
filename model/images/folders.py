"""Read the images of a folder and its subfolders, and count what is skipped."""

import os
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

from ddaebm.model.images.formats import Entry, file_entry, is_hidden, is_image_name, unreadable

_KINDS = 5  # that the message lists; others are counted together
_MOST_KINDS = 1_000  # that are counted one by one
# Files by which a folder is known that `ddaebm` has written. Its pictures are samples, not data.
_OUTPUTS = {
    "run of `ddaebm train`": {"config.json", "metrics.jsonl"},
    "bundle": {"bundle.json"},
    "figure of `ddaebm reproduce`": {"figure.png", "metrics.json"},
}
_IDX = "idx3-ubyte"


class Skipped:
    """Counts of the files and folders of a PATH that were not read, by kind."""

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()
        self.folders: Counter[str] = Counter()

    def add_file(self, name: str) -> None:
        """Count a file by its suffix, or as hidden."""
        kind = _kind(name)
        self.files[kind if kind in self.files or len(self.files) < _MOST_KINDS else "others"] += 1

    def take_back(self, name: str) -> None:
        """Undo `add_file(name)`."""
        self.files = self.files - Counter([_kind(name)])

    def __bool__(self) -> bool:
        return bool(self.files or self.folders)

    def __str__(self) -> str:
        """Such as `3 files skipped: 2 .txt, 1 hidden; 1 folder skipped: 1 bundle`."""
        parts = [_describe(kinds, what) for kinds, what in ((self.files, "file"), (self.folders, "folder")) if kinds]
        return "; ".join(parts)


def _kind(name: str) -> str:
    return "hidden" if is_hidden(name) else Path(name).suffix.lower()[:20] or "without a suffix"


def _describe(kinds: Counter[str], what: str) -> str:
    total = kinds.total()
    shown = [f"{count} {kind}" for kind, count in kinds.most_common(_KINDS)]
    if rest := total - sum(count for _, count in kinds.most_common(_KINDS)):
        shown.append(f"{rest} of other kinds")
    return f"{total} {what}{'s' if total > 1 else ''} skipped: {', '.join(shown)}"


def folder_entries(root: Path, skipped: Skipped) -> Iterator[Entry]:
    """The image files in a folder and its subfolders, sorted by name; the files of a folder precede its subfolders.

    Links to folders are followed after all else. A folder that was read already is not read again by a link: so loops
    end, and no image is both trained on and held out. A folder that cannot be read becomes an entry with an error.
    Hidden folders and folders that `ddaebm` has written are skipped.
    """
    done: set[tuple[int, int]] = set()  # device and inode
    waiting, links = [root], deque[Path]()
    while waiting or links:
        by_link = not waiting
        folder = links.popleft() if by_link else waiting.pop()
        try:
            status = folder.stat()
            key = (status.st_dev, status.st_ino)
            if by_link and key in done:
                skipped.folders["link to a folder that was read already"] += 1
                continue
            done.add(key)
            files, folders = _list(folder)
        except OSError as error:
            yield Entry(str(folder), unreadable(error, "folder"))
            continue
        if output := next((kind for kind, marks in _OUTPUTS.items() if marks <= set(files)), None):
            skipped.folders[output] += 1
            continue
        for name in files:
            path = folder / name
            if is_image_name(name) or (
                path.is_symlink() and not path.exists()
            ):  # a broken link may have led to a folder
                yield file_entry(path)
            else:
                skipped.add_file(name)
        below = [folder / name for name in folders if not is_hidden(name)]
        if len(below) < len(folders):
            skipped.folders["hidden"] += len(folders) - len(below)
        links.extend(path for path in below if by_link or path.is_symlink())
        waiting.extend(path for path in reversed(below) if not (by_link or path.is_symlink()))


def _list(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the files and of the folders in `folder`, sorted. A link counts as what it leads to."""
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as found:
        for item in found:
            try:
                is_folder = item.is_dir()
            except OSError:  # a link to where we may not look, which `file_entry` reports
                is_folder = False
            (folders if is_folder else files).append(item.name)
    return sorted(files), sorted(folders)


def find_idx(path: Path) -> Path | None:
    """Find an IDX file of images: `path` itself, or a file in the folder `path`.

    If a folder holds several, the training images are chosen.
    """
    if path.is_dir():
        found = sorted(path.glob(f"train-images-{_IDX}*")) or sorted(path.glob(f"*-images-{_IDX}*"))
        return found[0] if found else None
    return path if _IDX in path.name.lower() else None
