"""Starts and stops the servers, and measures the memory and CPU of all their processes."""

import ctypes
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import psutil

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds to start
GRACE = 15.0  # seconds to stop
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux's <sys/prctl.h>


class Kind(NamedTuple):
    label: str
    package: str
    arguments: str  # of Python; {port} is filled in


GATEWAY = "benchmarks.peers.on_bentoml:Gateway"
KINDS = {
    "ddaebm": Kind("this service", "ddaebm", "-m ddaebm serve --port {port}"),
    "litserve": Kind("LitServe", "litserve", "-m benchmarks.peers.on_litserve {port}"),
    "ray": Kind("Ray Serve", "ray", "-m benchmarks.peers.on_ray {port}"),
    "bentoml": Kind("BentoML", "bentoml", f"-m bentoml serve {GATEWAY} --host 127.0.0.1 --port {{port}}"),
    "fastapi": Kind("FastAPI, threads", "fastapi", "-m benchmarks.peers.on_fastapi {port}"),
}


class ServerError(Exception):
    """A server did not start, died, or answered something else than the others."""


class Usage(NamedTuple):
    cpu_seconds: float
    rss_mib: float  # of all processes; pages that they share count for each
    pss_mib: float  # the same, shared pages divided among those that share them


def environment(bundle: str, workers: int, threads: int, folder: Path) -> dict[str, str]:
    """Environment of every server: this checkout's packages, no settings of the user, a temporary home folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DDAEBM_", "RAY_", "BENTOML_"))}
    return kept | {
        "PYTHONPATH": str(ROOT), "HOME": str(folder),
        "DDAEBM_BUNDLE": bundle, "BENCH_BUNDLE": bundle, "BENCH_WORKERS": str(workers), "BENCH_THREADS": str(threads),
        "RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0",
        "BENTOML_HOME": str(folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "1",
    }  # fmt: skip


def version(kind: Kind, python: str) -> str:
    """Version of the server's package in the environment of `python`.

    Raises:
        ServerError: it is not installed.
    """
    if kind.package == "ddaebm":
        return importlib.metadata.version("ddaebm")
    code = f"import importlib.metadata as m, {kind.package}; print(m.version({kind.package!r}))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    except OSError as error:
        raise ServerError(f"{error.strerror}: {python}; make bench-peers installs it") from error
    if done.returncode:
        raise ServerError(f"{done.stderr.strip().splitlines()[-1]}; make bench-peers installs it")
    return done.stdout.split()[-1]


def adopt_orphans() -> None:
    """Processes whose parents end become children of this one, so that no server's daemon gets out of sight (Linux)."""
    if ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1):
        raise OSError(ctypes.get_errno(), "prctl")


class Server:
    """A server that is being started; `stop` ends all of its processes. One at a time: it owns all our children."""

    def __init__(self, kind: Kind, python: str, environment: dict[str, str], folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.label, self.log = kind.label, folder / "server.log"
        command = [python, *kind.arguments.format(port=self.port).split()]
        self.began = time.perf_counter()
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                cwd=folder, env=environment, start_new_session=True,
            )  # fmt: skip

    def check(self) -> None:
        """Raises ServerError once it has ended, with the last line that it said."""
        if (code := self.process.poll()) is not None:
            said = self.log.read_text(errors="replace").strip().splitlines() or ["without a word"]
            raise ServerError(f"ended with {code}: {said[-1][-300:]}")

    def post(self, path: str, body: dict[str, Any]) -> bytes:
        """The answer. Raises ServerError for any but a 200."""
        headers = {"Content-Type": "application/json", "Accept": "image/png" if path.endswith("samples") else "*/*"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return bytes(answer.read())
        except (OSError, HTTPException) as error:  # urllib's own are of the first kind
            raise ServerError(f"{path}: {error}") from error

    def wait(self) -> float:
        """Seconds from the start of the process to the first image over HTTP. Raises ServerError."""
        fault = ""
        while time.perf_counter() < self.began + PATIENCE:
            self.check()
            try:
                self.post("/v1/samples", {"n": 1, "seed": 0})
                return time.perf_counter() - self.began
            except ServerError as error:
                fault = str(error)
            time.sleep(0.02)
        raise ServerError(f"no image within {PATIENCE:g} s: {fault}")

    def processes(self) -> list[psutil.Process]:
        return psutil.Process().children(recursive=True)

    def stop(self) -> None:
        """Terminate all of its processes, then kill those that remain."""
        processes = self.processes()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self.process.kill()
        psutil.wait_procs(processes, timeout=3)
        for _ in range(3):  # one that is being started while others are killed is found the next time
            for process in (left := self.processes()):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            if not left:
                return
            psutil.wait_procs(left, timeout=5)
        raise ServerError(f"{self.label} left processes that cannot be killed: {self.processes()}")


def rss_mib(processes: list[psutil.Process]) -> float:
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 2**20


def usage(processes: list[psutil.Process]) -> Usage:
    cpu = pss = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            cpu += sum(process.cpu_times()[:4])  # user, system, and those of children that have ended
            pss += process.memory_full_info().pss
    return Usage(cpu, rss_mib(processes), pss / 2**20)
