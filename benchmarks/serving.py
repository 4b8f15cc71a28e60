"""The service against its own graph: images a second and latency over HTTP, next to raw `sampler.onnx`.

    python benchmarks/serving.py [--bundle fashion-mnist] [--seconds 5] [--rounds 3] [--out FILE.json]

Both run on this machine in one run, alternated round by round; the medians over the rounds and their
ratio are printed. The load comes from a process of its own, so that it shares no interpreter with the
service; on a small machine it does share the cores, and that is part of the ratio.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from model.bundle import find_bundle, load_bundle
from model.noise import image_seeds
from model.runtime import BundleRuntime

# name, images a request, requests at a time, Accept
CASES = [
    ("1 image, 1 client", 1, 1, "image/png"),
    ("1 image, 32 clients", 1, 32, "image/png"),
    ("64 images, 8 clients, one grid", 64, 8, "image/png"),
    ("64 images, 8 clients, JSON", 64, 8, "application/json"),
]


def raw(runtime: BundleRuntime, batch: int, seconds: float) -> tuple[float, float]:
    """(images a second, median seconds a call) of the graph alone, noise included."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        seeds = image_seeds(len(times), batch)
        began = time.perf_counter()
        runtime.sample(seeds)
        times.append(time.perf_counter() - began)
    return batch * len(times) / sum(times), statistics.median(times)


async def closed_loop(port: int, images: int, clients: int, accept: str, seconds: float) -> dict[str, float]:
    """Each client, on a connection of its own, asks again as soon as it is answered, with a fresh seed each time."""
    latencies: list[float] = []
    seeds = itertools.count()
    began = time.perf_counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < began + seconds:
            asked = time.perf_counter()
            await post(reader, writer, json.dumps({"n": images, "seed": next(seeds)}).encode(), accept)
            latencies.append(time.perf_counter() - asked)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(client() for _ in range(clients)))
    return {
        "images_per_second": images * len(latencies) / (time.perf_counter() - began),
        "p50_ms": 1e3 * float(np.percentile(latencies, 50)),
        "p99_ms": 1e3 * float(np.percentile(latencies, 99)),
    }


async def post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes, accept: str) -> bytes:
    """One request on an open connection; a client of the standard library costs the service the least CPU."""
    head = f"POST /v1/samples HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    status, *headers = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    length = next(int(line[15:]) for line in headers if line.lower().startswith("content-length:"))
    answer = await reader.readexactly(length)
    if status.split()[1] != "200":
        raise SystemExit(f"{status}: {answer[:500]!r}")
    return answer


def start_service(bundle: str) -> tuple[subprocess.Popen[bytes], int, float]:
    """The service as users start it, its port, and the seconds until it was ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.perf_counter()
    command = [sys.executable, "-m", "ddaebm", "serve", "--bundle", bundle, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    while time.perf_counter() < began + 60:
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=1)
            return process, port, time.perf_counter() - began
        except (urllib.error.URLError, ConnectionError):
            if process.poll() is not None:
                raise SystemExit(f"the service ended with {process.returncode}") from None
            time.sleep(0.02)
    process.kill()
    raise SystemExit("the service was not ready within 60 s")


def resident_mib(process: subprocess.Popen[bytes]) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def median_of(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(entry[key] for entry in rounds) for key in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="fashion-mnist")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    options = parser.parse_args()

    bundle = load_bundle(find_bundle(options.bundle))
    runtime = BundleRuntime(bundle)
    process, port, ready_seconds = start_service(options.bundle)
    rows: list[dict[str, Any]] = []
    try:
        print(f"{bundle.name} on {os.cpu_count()} cores, {platform.processor() or platform.machine()}")
        print(f"ready after {ready_seconds:.2f} s, {resident_mib(process):.0f} MiB resident\n")
        print("| case | service img/s | p50 ms | p99 ms | raw graph img/s | raw ms a call | ratio |")
        print("|---|---|---|---|---|---|---|")
        for name, images, clients, accept in CASES:
            batch = min(64, images * clients)  # what the service can merge at best
            served, alone = [], []
            for _ in range(options.rounds):
                speed, call = raw(runtime, batch, options.seconds / 2)
                alone.append({"images_per_second": speed, "call_ms": 1e3 * call})
                served.append(asyncio.run(closed_loop(port, images, clients, accept, options.seconds)))
            service, graph = median_of(served), median_of(alone)
            ratio = service["images_per_second"] / graph["images_per_second"]
            rows.append({"case": name, "service": service, "graph": graph, "batch": batch, "ratio": ratio})
            print(
                f"| {name} | {service['images_per_second']:.0f} | {service['p50_ms']:.1f} | {service['p99_ms']:.1f} |"
                f" {graph['images_per_second']:.0f} (batch {batch}) | {graph['call_ms']:.1f} | {ratio:.2f} |",
                flush=True,
            )
        print(f"\nafter the load: {resident_mib(process):.0f} MiB resident")
    finally:
        process.terminate()
        process.wait(60)
    if options.out:
        options.out.write_text(
            json.dumps({"bundle": bundle.digest, "ready_seconds": ready_seconds, "cases": rows}, indent=2)
        )


if __name__ == "__main__":
    main()
