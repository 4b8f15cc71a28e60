"""The package as others get it: a wheel, a source distribution, and copies that lost something."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import ddaebm
from tests.e2e.conftest import REPO, clone, environment

ROOMS = ("model", "service", "training")
FIXTURES = REPO / "tests" / "fixtures"


def run(*words: object, cwd: Path, ok: bool = True) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run([*map(str, words)], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=600)
    assert not ok or done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run `make dist` on a clean copy."""
    copy = clone(tmp_path_factory.mktemp("dist") / "ddaebm")
    done = run(sys.executable, "-m", "build", cwd=copy, ok=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return copy / "dist"


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    (wheel,) = dist.glob("*.whl")
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "-c", REPO / "constraints.txt", f"{wheel}[cpu]", cwd=folder)
    return python


@pytest.fixture
def busy_folder(tmp_path: Path) -> Path:
    """A folder whose own modules have the names of our rooms."""
    (tmp_path / "model.py").write_text("raise SystemExit('the wrong model')\n")
    (tmp_path / "training.py").write_text("raise SystemExit('the wrong training')\n")
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "__init__.py").write_text("raise SystemExit('the wrong service')\n")
    for name in ("fashion.png", "digit.png"):
        shutil.copy(FIXTURES / name, tmp_path / name)
    return tmp_path


@pytest.mark.system("a package index")
def test_the_wheel_holds_one_top_level_name_and_every_module(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"ddaebm", f"ddaebm-{ddaebm.__version__}.dist-info"}
    known = run("git", "ls-files", "-co", "--exclude-standard", "ddaebm", *ROOMS, cwd=REPO).stdout.splitlines()
    files = [name for name in known if (REPO / name).is_file()]  # not the links
    wanted = {name if name.startswith("ddaebm/") else f"ddaebm/{name}" for name in files}
    assert wanted <= names
    assert {name for name in names if name.startswith("ddaebm/")} == wanted


@pytest.mark.system("a package index")
def test_the_source_distribution_makes_the_same_wheel(dist: Path, tmp_path: Path) -> None:
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    with tarfile.open(sdist) as archive:
        assert not [member.name for member in archive if member.issym() or member.islnk()]
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert {path.name for path in source.iterdir()} >= {"ddaebm", "pyproject.toml", "setup.py", "README.md", "LICENSE"}
    assert not (source / "model").exists()
    run(sys.executable, "-m", "build", "--wheel", cwd=source)
    with zipfile.ZipFile(wheel) as ours, zipfile.ZipFile(next((source / "dist").glob("*.whl"))) as again:
        assert sorted(ours.namelist()) == sorted(again.namelist())


@pytest.mark.system("a package index")
def test_it_works_beside_modules_of_the_same_names(installed: Path, busy_folder: Path) -> None:
    code = (
        "import ddaebm; m = ddaebm.load(); x = m.sample(3, seed=1); print(x.shape, x.dtype);"
        " print(m.score(['fashion.png', 'digit.png']).is_ood().tolist(), ddaebm.__version__)"
    )
    done = run(installed, "-c", code, cwd=busy_folder)
    assert done.stdout == f"(3, 28, 28, 1) uint8\n[False, True] {ddaebm.__version__}\n"
    for command in ([installed.with_name("ddaebm")], [installed, "-m", "ddaebm"]):
        run(*command, "sample", "-n", 4, "--out", "grid.png", cwd=busy_folder)
        table = run(*command, "score", "fashion.png", "digit.png", cwd=busy_folder).stdout.splitlines()
        assert [line.split()[0] for line in table] == ["verdict", "in", "ood"]
        assert run(*command, "serve", "--print-settings", cwd=busy_folder).stdout.startswith("DDAEBM_")
        lost = run(*command, "train", "debug", "--out", "run", cwd=busy_folder, ok=False)
        assert lost.returncode == 1
        assert "is not installed here; pip install" in lost.stderr


@pytest.mark.parametrize("kind", ["plain", "editable"])
@pytest.mark.system("a package index")
def test_it_works_in_the_parent_folder_of_a_clone(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """There `ddaebm/` is the clone: a folder without __init__.py, which Python takes for a namespace package."""
    python = request.getfixturevalue("installed") if kind == "plain" else Path(sys.executable)
    clone(tmp_path / "ddaebm")
    done = run(python, "-c", "import ddaebm; print(ddaebm.load().sample(2, seed=1).shape)", cwd=tmp_path)
    assert done.stdout == "(2, 28, 28, 1)\n"


@pytest.mark.parametrize("room", ROOMS)
def test_a_second_copy_of_a_room_is_refused(room: str) -> None:
    done = run(sys.executable, "-c", f"import {room}", cwd=REPO, ok=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ImportError: import ddaebm.{room}, not {room}: the package is ddaebm"
    run(sys.executable, "-c", f"import ddaebm.{room}", cwd=REPO)


def test_a_copy_that_lost_its_links_says_so(tmp_path: Path) -> None:
    """As git writes them with core.symlinks=false: text files."""
    copy = clone(tmp_path / "copy")
    for room in ROOMS:
        link = copy / "ddaebm" / room
        target = os.readlink(link)  # noqa: PTH115  # as git would write it
        link.unlink()
        link.write_text(target)
    done = run(sys.executable, "-c", "import ddaebm", cwd=copy, ok=False)
    assert done.stderr.splitlines()[-1].startswith("ImportError: the symbolic links ddaebm/model, ddaebm/service and")
    built = run(sys.executable, "setup.py", "--version", cwd=copy, ok=False)
    assert built.returncode == 1
    assert built.stderr.startswith("ddaebm: the symbolic links ddaebm/model")
    assert built.stderr.count("\n") == 1


def test_the_version_is_in_one_place() -> None:
    done = run("git", "grep", "-lF", f'"{ddaebm.__version__}"', "--", "*.py", "*.toml", "docker", cwd=REPO)
    assert done.stdout.split() == ["ddaebm/__init__.py"]
