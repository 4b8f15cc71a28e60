"""Latency that the service adds to one image for one client, alternating requests with the same inference here.

python -m benchmarks.overhead [--bundle fashion-mnist] [--count 500]

From the root of the repository, on an otherwise idle machine. The service has its default settings, and the inference
here as many threads as one of its own. Both draw the noise; the service encodes a PNG as well. Milliseconds of wall
clock; `added` is what a request took longer than the inference beside it.
"""

import argparse
import socket
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.peers.load import FIRST_SEED, PNG_END, request
from benchmarks.peers.servers import KINDS, Server, environment
from ddaebm.model.bundle import find_bundle, load_bundle
from ddaebm.model.runtime import OnnxEngine
from ddaebm.service.registry import plan_workers
from ddaebm.service.settings import Settings

WARM_UP = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="fashion-mnist")
    parser.add_argument("--count", type=int, default=500)
    args = parser.parse_args()
    workers, threads = plan_workers(Settings())
    runtime = OnnxEngine(load_bundle(find_bundle(args.bundle)), "cpu", threads)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        settings = environment(args.bundle, workers, threads, Path(folder))
        server = Server(KINDS["ddaebm"], sys.executable, settings, Path(folder))
        try:
            server.wait()
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for seed in range(FIRST_SEED, FIRST_SEED + WARM_UP + args.count):
                    began = time.perf_counter()
                    connection.sendall(request("/v1/samples", b'{"n":1,"seed":%d}' % seed))
                    answer = b""
                    while not answer.endswith(PNG_END):
                        part = connection.recv(2**16)
                        if not part or not (answer := answer + part).startswith(b"HTTP/1.1 200"):
                            raise SystemExit(f"the service answered {answer.decode(errors='replace')!r}")
                    asked = time.perf_counter()
                    runtime.sample(np.array([seed]))
                    times.append((asked - began, time.perf_counter() - asked))
        finally:
            server.stop()
    over_http, raw = 1e3 * np.array(times[WARM_UP:]).T
    print(f"{args.bundle}, {args.count} pairs\n\n| ms | quartile | median | quartile |\n|---|---|---|---|")
    for name, values in (("over HTTP", over_http), ("raw", raw), ("added", over_http - raw)):
        print(f"| {name} | " + " | ".join(f"{q:.2f}" for q in np.quantile(values, [0.25, 0.5, 0.75])) + " |")


if __name__ == "__main__":
    main()
