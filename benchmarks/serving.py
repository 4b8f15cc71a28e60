"""This service beside other servers of the same graph: throughput, latency, memory and CPU over HTTP.

    make bench-peers        # once: the peers, in .venv-peers
    python -m benchmarks.serving [--peers litserve,ray,bentoml,fastapi] [--seconds 5] [--rounds 3]
                                 [--out FILE.json] [--plot FILE.png] [--doc docs/performance.md]

From the root of the repository, with the environment of `make install`. This service (`ddaebm serve`, its defaults) and
each peer get the same requests one after the other in each round: single images from 1 to 128 clients, grids of 64,
scores, both mixed, and on a fresh process Poisson arrivals at 30 to 90 % of what that server did at best.
Every peer calls the same `sampler.onnx` and `energy.onnx` through `model.runtime`, in as many copies of one thread as
this service has inferences at a time (--workers and --threads divide the cores otherwise), draws the same noise and
encodes the same PNG (benchmarks/peers/job.py); before it is measured its answers are compared with ours. Its settings,
and where they come from, stand in benchmarks/peers/on_*.py. Raw is ONNX Runtime in a loop in each round, the best over
batch sizes and callers, noise included, PNG excluded. Peers log no requests; this service does.

Medians over the rounds; errors are summed. A peer that is not installed, dies or answers wrongly is named with the
reason. Memory is resident and summed over the server's processes. The load is a process of its own, but shares the
cores with the server: run this on an idle machine. Three rounds of all servers take half an hour.
"""

import argparse
import base64
import io
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.pages import write_section
from benchmarks.peers import report
from benchmarks.peers.cases import CASES, SHARES, SINGLE, Case
from benchmarks.peers.job import Job, pixels_of, png_of, seeds_of, verdicts_of
from benchmarks.peers.servers import KINDS, ROOT, Server, ServerError, adopt_orphans, environment, usage, version
from benchmarks.peers.servers import rss_mib as resident
from ddaebm.model.bundle import find_bundle, load_bundle
from ddaebm.model.files import write_file
from ddaebm.model.images.encode import encode_png

PEERS = [name for name in KINDS if name != report.OURS]
IMAGES = ROOT / "tests" / "fixtures" / "fashion-mnist-test-512.npz"  # to be scored


class Bench:
    """State of a run: a temporary folder, the environment, and the expected responses."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.seconds, self.folder = options.seconds, folder
        self.pythons = dict.fromkeys(PEERS, str(options.peers_python.absolute())) | {report.OURS: sys.executable}
        self.environment = environment(
            str(find_bundle(options.bundle).resolve()), options.workers, options.threads, folder
        )
        self.measured = 0
        with np.load(IMAGES) as arrays:
            pngs = [base64.b64encode(encode_png(image)).decode() for image in arrays["images"][:64]]
        (folder / "pngs.json").write_text(json.dumps(pngs))
        self.questions: list[tuple[str, dict[str, Any]]] = [
            ("/v1/samples", {"n": 1, "seed": 7}),
            ("/v1/samples", {"n": 64, "seed": 7}),
            ("/v1/scores", {"images": pngs[:1]}),
        ]
        os.environ.update({name: text for name, text in self.environment.items() if name.startswith("BENCH_")})
        job = Job()
        self.right = [png_of(job.sample(seeds_of(body))) for _, body in self.questions[:2]]
        self.right.append(json.dumps(verdicts_of(job.score(pixels_of(self.questions[2][1], job.contract)))).encode())

    @contextmanager
    def python(self, module: str, argument: str) -> Iterator["subprocess.Popen[str]"]:
        """A child process that prints JSON and is ended with the block."""
        command = [sys.executable, "-m", f"benchmarks.peers.{module}", argument]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, text=True, cwd=self.folder, env=self.environment) as process:
            try:
                yield process
            finally:
                process.kill()

    def raw(self) -> dict[str, dict[str, float]]:
        """Images a second of the graphs alone, by operation and kind of call."""
        with self.python("raw", str(self.seconds / 4)) as process:
            return result_of(process)

    def verify(self, server: Server) -> None:
        """Raises ServerError unless it answers as the graphs do when they are called here."""
        for (path, body), right in zip(self.questions, self.right, strict=True):
            answer = server.post(path, body)
            if path == "/v1/samples":
                ours, theirs = (np.asarray(Image.open(io.BytesIO(png)), dtype=int) for png in (right, answer))
                alike = ours.shape == theirs.shape and np.abs(ours - theirs).max() <= 1  # grey levels
            else:
                ours, theirs = (json.loads(text)["results"][0]["ood_score"] for text in (right, answer))
                alike = bool(np.isclose(ours, theirs, rtol=1e-3))
            if not alike:
                raise ServerError(f"{path} {str(body)[:40]}: another answer than that of the graphs")

    def drive(self, server: Server, case: Case, rate: float = 0.0) -> dict[str, Any]:
        """One measurement after a warm-up of the same kind. Raises ServerError when the server ends meanwhile."""
        self.load(server, case, min(self.seconds / 4, 1.0), rate)
        return self.load(server, case, self.seconds, rate)

    def load(self, server: Server, case: Case, seconds: float, rate: float) -> dict[str, Any]:
        self.measured += 1
        asked = case._asdict() | {
            "port": server.port, "seconds": seconds, "rate": rate,
            "pngs": str(self.folder / "pngs.json"), "first_seed": self.measured * 10**7,
        }  # fmt: skip
        processes = server.processes()
        before = usage(processes)
        peak = before.rss_mib
        with self.python("load", json.dumps(asked)) as load:
            while load.poll() is None:
                server.check()
                peak = max(peak, resident(processes))
                with suppress(subprocess.TimeoutExpired):
                    load.wait(0.25)
            found = result_of(load)
        after = usage(server.processes())
        cpu = after.cpu_seconds - before.cpu_seconds
        return found | {
            "rate": rate,
            "peak_rss_mib": max(peak, after.rss_mib),
            "pss_mib": after.pss_mib,
            "cpu_seconds_per_1000": 1e3 * cpu / found["images"] if found["images"] else None,
        }

    @contextmanager
    def server(self, name: str) -> Iterator[Server]:
        server = Server(KINDS[name], self.pythons[name], self.environment, self.folder)
        try:
            yield server
        finally:
            server.stop()

    def measure(self, name: str, found: dict[str, Any]) -> None:
        """All cases, into `found` one by one; closed and open loops each on a fresh server. Raises ServerError."""
        with self.server(name) as server:
            found["ready_seconds"] = server.wait()
            found["ready_rss_mib"] = resident(server.processes())
            self.verify(server)
            self.load(server, SINGLE[0], self.seconds, 0.0)  # some learn from their first requests how to batch
            for case in CASES:
                found["closed"][case.name] = self.drive(server, case)
        found["capacity"] = max(found["closed"][case.name]["images_per_second"] for case in SINGLE)
        if not found["capacity"]:
            raise ServerError("no single image was answered, so there is no capacity to take a share of")
        with self.server(name) as server:
            server.wait()
            self.load(server, SINGLE[0], self.seconds, 0.0)
            for share in SHARES:
                found["open"][f"{share:.0%}"] = self.drive(server, SINGLE[0], share * found["capacity"])


def result_of(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """The JSON that it printed. Raises SystemExit when it failed."""
    printed, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{process.args!r} ended with {process.returncode}")
    result: dict[str, Any] = json.loads(printed)
    return result


def run(bench: Bench, names: list[str], rounds: int, out: Path | None) -> dict[str, Any]:
    """All measurements, for the report."""
    found: dict[str, Any] = {"versions": {}, "failures": {}, "rounds": []}
    for name in names:
        try:
            found["versions"][name] = version(KINDS[name], bench.pythons[name])
        except ServerError as error:
            found["failures"].setdefault(name, []).append(f"not run: {error}")
            say(f"{KINDS[name].label}: not run: {error}")
    for i in range(rounds):
        say(f"round {i + 1} of {rounds}: raw")
        servers: dict[str, Any] = {}
        found["rounds"].append({"raw": bench.raw(), "servers": servers})
        running = list(found["versions"])
        for name in running[i % len(running) :] + running[: i % len(running)]:
            say(f"round {i + 1} of {rounds}: {KINDS[name].label}")
            servers[name] = {"closed": {}, "open": {}}
            try:
                bench.measure(name, servers[name])
            except ServerError as error:
                found["failures"].setdefault(name, []).append(f"round {i + 1}: {error}")
                say(f"{KINDS[name].label}: {error}")
            if out:
                write_file(out, json.dumps(found, indent=1).encode())
    return found


def say(text: str) -> None:
    print(f"serving: {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="fashion-mnist")
    parser.add_argument("--peers", default=",".join(PEERS), help="separated by commas; empty for none")
    parser.add_argument("--peers-python", type=Path, default=ROOT / ".venv-peers" / "bin" / "python")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="copies of the model in each peer")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime, for each of them")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write everything as JSON, after each server")
    parser.add_argument("--plot", type=Path, help="write a picture")
    parser.add_argument("--doc", type=Path, help="write the tables between the marks of this file")
    options = parser.parse_args()
    peers = [name for name in options.peers.split(",") if name]
    if unknown := set(peers) - set(PEERS):
        parser.error(f"--peers: no {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped as after Ctrl-C
    adopt_orphans()
    bundle = load_bundle(find_bundle(options.bundle))
    try:
        with tempfile.TemporaryDirectory(prefix="ddaebm-", ignore_cleanup_errors=True) as folder:
            found = run(Bench(options, Path(folder)), [report.OURS, *peers], options.rounds, options.out)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    machine = (
        f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, Python {platform.python_version()}"
    )
    arguments = (
        f"--bundle {options.bundle} --peers {options.peers} --workers {options.workers} --threads {options.threads}"
    )
    command = f"python -m benchmarks.serving {arguments} --seconds {options.seconds:g} --rounds {options.rounds}"
    section = f"    {command}\n\n{report.tables(found, f'{bundle.name} on {machine}')}"
    print(section)
    if options.doc:
        write_section(options.doc, report.BEGIN, report.END, section)
    if options.plot:
        report.plot(found, options.plot)


if __name__ == "__main__":
    main()
