"""How large a fault test is, the processes that it starts, and the table of what it found.

STRESS is 0 in the normal suite and 1 in `make stress`; what lies between gives what lies between.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

import ddaebm
from ddaebm.model.files import write_file
from tests.e2e.conftest import PATIENCE, Running, environment
from tests.stress.load import Client

ROOT = Path(ddaebm.__file__).parents[1]
STRESS = float(os.environ.get("STRESS", "0"))
SHIPPED = ("ddaebm", "serve")
STAND_IN = ("tests.stress.server", "0.002")  # 500 images a second

Start = Callable[..., AbstractContextManager[Running]]


def size(short: float, long: float) -> float:
    """Of a test: `short` in the normal suite, `long` in `make stress`."""
    return short + STRESS * (long - short)


def count(short: int, long: int) -> int:
    return round(size(short, long))


@contextmanager
def running(folder: Path, *words: str, **settings: object) -> Iterator[Running]:
    """`python -m WORDS` on a free port, with its output in `folder`."""
    log = folder / "serve.log"
    variables = {f"DDAEBM_{name.upper()}": str(value) for name, value in settings.items()}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdout=output, stderr=subprocess.STDOUT, cwd=folder,
            env=environment(DDAEBM_PORT="0", DDAEBM_WORKERS="1", DDAEBM_THREADS="1", PYTHONPATH=str(ROOT), **variables),
        )  # fmt: skip
    with ExitStack() as stack:
        stack.callback(process.wait, PATIENCE)
        stack.callback(process.kill)
        service = Running(process, log)
        stack.callback(service.client.close)
        yield service


@pytest.fixture
def start(tmp_path: Path) -> Start:
    return lambda *words, **settings: running(tmp_path, *words, **settings)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service without a wait that tests share; whatever they send, it stays up and logs no traceback."""
    with running(tmp_path_factory.mktemp("stand-in"), STAND_IN[0], "0") as service:
        yield service


def client_of(service: Running) -> Client:
    url = urlsplit(str(service.client.base_url))
    assert url.hostname
    assert url.port
    return Client(url.hostname, url.port)


def process_of(service: Running) -> psutil.Process:
    return psutil.Process(service.process.pid)


def mebibytes(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 2**20


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What the tests recorded, a line each and as JSON."""
    if not STRESS:
        return
    rows = [
        {"test": report.nodeid.rpartition("::")[2], "outcome": outcome, "seconds": round(report.duration, 1),
         **dict(report.user_properties)}
        for outcome, reports in terminalreporter.stats.items() for report in reports
        if getattr(report, "when", None) == "call"
    ]  # fmt: skip
    terminalreporter.section(f"stress, scale {STRESS:g}")
    for row in rows:
        terminalreporter.write_line("  ".join(f"{name}={value}" for name, value in row.items()))
    out = config.rootpath / "runs" / "stress.json"
    out.parent.mkdir(exist_ok=True)
    machine = {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()}
    write_file(out, json.dumps({"scale": STRESS, "machine": machine, "tests": rows}, indent=1).encode())
    terminalreporter.write_line(f"written to {out}")
