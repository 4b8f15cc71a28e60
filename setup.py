"""pyproject.toml describes the package. Here is only the check that no declaration can make."""

from pathlib import Path

from setuptools import setup

ROOMS = [Path(__file__).parent / "ddaebm" / name for name in ("model", "service", "training")]

if not all(room.is_dir() for room in ROOMS):
    raise SystemExit(
        "ddaebm: the symbolic links ddaebm/model, ddaebm/service and ddaebm/training are missing from this copy; "
        "clone again with `git clone -c core.symlinks=true`"
    )

setup()
