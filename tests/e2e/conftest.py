"""The command line and the service as processes of their own. Every wait is bounded, every process ended."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import httpx
import pytest

from ddaebm.cli import main

REPO = Path(__file__).parents[2]
PATIENCE = 60.0  # seconds, for a machine that is busy with other things
COMMAND = [sys.executable, "-m", "ddaebm"]

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def environment(**settings: str) -> dict[str, str]:
    """This process's, without settings of the developer's, and wide enough for messages on one line."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DDAEBM_")}
    return clean | {"COLUMNS": "1000", "NO_COLOR": "1"} | settings


def clone(folder: Path) -> Path:
    """A copy of the files that git knows, links as links."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        source, target = REPO / name, folder / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target, follow_symlinks=False)
    return folder


class Running:
    """A service that has said where it listens."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process, self.log = process, log
        self.client = httpx.Client(base_url=self._wait_for_url(), timeout=PATIENCE, trust_env=False)
        assert self.client.get("/readyz").status_code == 200

    def _wait_for_url(self) -> str:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if found := re.search(r"running on (http://[\d.:]+)", self.log.read_text()):
                return found[1]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError(f"not started in {PATIENCE} s: {self.log.read_text()}")

    def stop(self, number: signal.Signals) -> int:
        """Send the signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def running(bundle: Path | str, folder: Path, *more: Path) -> Iterator[Running]:
    """A service of one bundle or several on a free port of its own choice, with its output in `folder`."""
    bundles = [word for item in (bundle, *more) for word in ("--bundle", str(item))]
    log = folder / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*COMMAND, "serve", *bundles, "--port", "0"],
            stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=environment(DDAEBM_THREADS="1"),
        )  # fmt: skip
    with ExitStack() as stack:
        stack.callback(process.wait, PATIENCE)
        stack.callback(process.kill)
        service = Running(process, log)
        stack.callback(service.client.close)
        yield service


@pytest.fixture
def serve(debug_bundle: Path, tmp_path: Path) -> Iterator[Running]:
    """A service that the test may stop."""
    with running(debug_bundle, tmp_path) as service:
        yield service


@pytest.fixture(scope="session")
def service(debug_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service that tests share, and leave running."""
    with running(debug_bundle, tmp_path_factory.mktemp("service")) as shared:
        yield shared


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def run_here(*arguments: object, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run `ddaebm` in this process, where torch is imported already: a new process would take seconds for that."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    argv = ["ddaebm", *map(str, arguments)]
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, environment(), clear=True))
        stack.enter_context(mock.patch.object(sys, "argv", argv))
        stack.enter_context(chdir(cwd))
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        exit_ = stack.enter_context(pytest.raises(SystemExit))
        main()
    said = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(argv, int(exit_.value.code or 0), *said)


def run_cli(*arguments: object, cwd: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True, text=True, timeout=2 * PATIENCE, cwd=cwd, env=environment(**settings),
    )  # fmt: skip


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Runs `ddaebm` in the test's own folder; with `settings`, in a process and an environment of its own."""

    def run(*arguments: object, **settings: str) -> "subprocess.CompletedProcess[str]":
        return run_cli(*arguments, cwd=tmp_path, **settings) if settings else run_here(*arguments, cwd=tmp_path)

    return run


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs `ddaebm` in this process, where torch is imported already: for tables of errors."""

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        monkeypatch.setattr(sys, "argv", ["ddaebm", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        return subprocess.CompletedProcess(sys.argv, int(exit_.value.code or 0), *capsys.readouterr())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    for name in [name for name in os.environ if name.startswith("DDAEBM_")]:
        monkeypatch.delenv(name)
    return run


def check_failure(done: "subprocess.CompletedProcess[str]", code: int, *words: str) -> None:
    """It ended with `code` and, for code 1, one line on stderr; what it said holds `words`."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    if code == 1:
        assert done.stderr.startswith("ddaebm: ")
        assert done.stderr.count("\n") == 1
