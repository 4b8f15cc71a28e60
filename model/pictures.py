"""Pictures of where images are strange, as files of a folder."""

import re
from pathlib import Path

from ddaebm.model.errors import ConfigError
from ddaebm.model.files import require_writable, write_file

_LONGEST = 80  # characters of an image's name in that of its picture


def open_folder(folder: Path) -> None:
    """Make the folder.

    Raises:
        ConfigError: It is a file, or holds something.
        OSError: It may not be written.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a folder for the pictures")
    require_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; give another folder for the pictures")


def write_picture(folder: Path, index: int, name: str, png: bytes) -> None:
    """Write the picture of the image at `index` of the input, which is called `name`."""
    stem = re.sub(r"[^A-Za-z0-9.-]+", "_", Path(name).name)[:_LONGEST]
    write_file(folder / f"{index:08d}-{stem}.png", png, sync=False)
