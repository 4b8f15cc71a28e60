"""Fixtures that several packages' tests share: one short training run and one exported bundle a session.

Torch is imported inside the fixtures alone, so that the tests of serving can show that it is not needed.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from ddaebm.model.bundle import MANIFEST

# Torch's threads wait for each other by spinning, which on a busy machine turns milliseconds into
# seconds; the tests' networks are too small to gain from a second one. Read when torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--system", action="store_true", help="run the tests that need more than the Python environment")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests marked `system(NEED)`, unless they are asked for. `.ci/run` does, and installs what they need."""
    if config.getoption("--system"):
        return
    for item in items:
        if marker := item.get_closest_marker("system"):
            item.add_marker(pytest.mark.skip(reason=f"needs {marker.args[0]}; `make test ARGS=--system` runs it"))


def make_debug_run(run: Path) -> Path:
    from ddaebm.training.checkpoint import write_config
    from ddaebm.training.data import load_data, split
    from ddaebm.training.recipes import make_config
    from ddaebm.training.trainer import train

    config = make_config("debug").override(
        {"steps": "6", "checkpoint_every": "3", "log_every": "2", "sample_every": "3"}
    )
    write_config(run, config)
    train(config, split(load_data(config.data, config.network)).train, run, device="cpu")
    return run


def make_debug_bundle(run: Path, out: Path) -> Path:
    from ddaebm.training.export import export

    export(run, out)
    return out


@pytest.fixture(scope="session")
def debug_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a few steps of the debug recipe. Copy it before changing it."""
    return once(tmp_path_factory, "debug-run", lambda folder: make_debug_run(folder / "run"))


@pytest.fixture(scope="session")
def debug_bundle(debug_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundle folder exported from `debug_run`. Copy it before changing it."""
    return once(tmp_path_factory, "debug-bundle", lambda folder: make_debug_bundle(debug_run, folder / "bundle"))


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Path]) -> Path:
    """Call `make` with a folder that all processes of this session share, in the first one that needs it."""
    session = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    folder, done = session / name, session / f"{name}.done"
    with (session / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a call that failed
            folder.mkdir()
            done.write_text(str(make(folder)))
        return Path(done.read_text())


@pytest.fixture
def forge(debug_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of `debug_bundle` with other files and manifest fields, and hashes that are right for them."""

    def make(files: Mapping[str, bytes], **fields: object) -> Path:
        copy = Path(shutil.copytree(debug_bundle, tmp_path / "forged", dirs_exist_ok=True))
        manifest = json.loads((copy / MANIFEST).read_text()) | fields
        for name, contents in files.items():
            (copy / name).write_bytes(contents)
            manifest["files"][name] = hashlib.sha256(contents).hexdigest()
        of = manifest["calibration"]["of"]
        of.update({name: manifest["files"][name] for name in of})
        (copy / MANIFEST).write_text(json.dumps(manifest))
        return copy

    return make
