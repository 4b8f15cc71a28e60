"""The load: requests of one case over kept-alive connections, as a process of its own: a case as JSON, numbers as JSON.

Written for it, since wrk and hey know closed loops alone and no Poisson arrivals: HTTP/1.1 on an asyncio protocol, with
requests that differ in their seed and are otherwise made once. It takes some 50 microseconds of a core a request; what
it took is in the answer. Every answer must be a 200 with a whole PNG, or scores.
"""

import asyncio
import base64
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Collection
from itertools import count, cycle
from pathlib import Path
from typing import Any, cast

import uvloop

PNG, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
FIRST_SEED = 10**12  # all seeds have as many digits, so that all requests are as long
MAX_IN_FLIGHT = 1024  # of an open loop
PATIENCE = 60.0  # seconds for the last answers
KEEP_ALIVE = 3.0  # seconds without a request; uvicorn closes a connection after 5
PAUSE = 0.05  # seconds after an error, lest refusals be asked for in a loop


def request(path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {'image/png' if path.endswith('samples') else '*/*'}\r\n"
    )
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Requests:
    """The case's requests, one after the other: (bytes, whether a PNG is the answer)."""

    def __init__(self, kind: str, images: int, first_seed: int, pngs: list[bytes]) -> None:
        self.seeds = count(FIRST_SEED + first_seed)
        self.sampling = request("/v1/samples", b'{"n":%d,"seed":%d}' % (images, FIRST_SEED))[: -len(f"{FIRST_SEED}}}")]
        bodies = [json.dumps({"images": [base64.b64encode(png).decode()]}).encode() for png in pngs]
        self.scoring = cycle([request("/v1/scores", body) for body in bodies])
        self.kinds = cycle({"sample": [True], "score": [False], "mix": [True, False]}[kind])

    def next(self) -> tuple[bytes, bool]:
        if next(self.kinds):
            return self.sampling + b"%d}" % next(self.seeds), True
        return next(self.scoring), False


class Connection(asyncio.Protocol):
    """One request at a time."""

    transport: asyncio.Transport

    def __init__(self, load: "Load") -> None:
        self.load, self.buffer = load, bytearray()
        self.began, self.png, self.length = 0.0, False, 0
        self.busy, self.lost, self.ended = False, False, 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its base class

    def ask(self, asked: tuple[bytes, bool], began: float) -> None:
        data, self.png = asked
        self.busy, self.began, self.length = True, began, 0
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.length:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            at = self.buffer[:end].lower().find(b"content-length:")
            if at < 0:
                self.transport.abort()
                self.done("no Content-Length")
                return
            self.body = end + 4
            self.length = self.body + int(self.buffer[at + 15 : self.buffer.find(b"\r", at)])
        if len(self.buffer) >= self.length:
            self.done(self.fault())

    def fault(self) -> str:
        """The fault of a response, or an empty string."""
        if self.buffer[9:12] != b"200":
            return self.buffer[9:12].decode()
        if self.png:
            whole = self.buffer.startswith(PNG, self.body) and self.buffer.endswith(PNG_END)
            return "" if whole else "not a PNG"
        return "" if b'"p_value"' in self.buffer else "not scores"

    def done(self, fault: str) -> None:
        self.busy, self.ended = False, time.perf_counter()
        self.load.done(self, fault)
        self.buffer.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self.busy:
            self.done("connection closed")


class Load:
    """Responses, their latencies, and errors."""

    def __init__(self, port: int, requests: Requests) -> None:
        self.port, self.requests = port, requests
        self.latencies: list[float] = []
        self.errors: Counter[str] = Counter()
        self.idle: list[Connection] = []
        self.last = time.perf_counter()  # answer
        self.waiters: dict[Connection, asyncio.Future[str]] = {}

    def done(self, connection: Connection, fault: str) -> None:
        self.last = connection.ended
        if fault:
            self.errors[fault] += 1
        else:
            self.latencies.append(self.last - connection.began)
        if not (waiter := self.waiters.pop(connection)).done():  # nothing waits once time is up
            waiter.set_result(fault)

    async def connect(self) -> Connection:
        while self.idle:  # the last one first
            connection = self.idle.pop()
            if not connection.lost and time.perf_counter() < connection.ended + KEEP_ALIVE:
                return connection
            connection.transport.abort()
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(lambda: Connection(self), "127.0.0.1", self.port))[1]

    async def ask(self, began: float = 0.0) -> None:
        """One request, from `began` on or from when it is written."""
        try:
            connection = await self.connect()
        except OSError as error:
            self.errors[type(error).__name__] += 1
            await asyncio.sleep(PAUSE)
            return
        self.waiters[connection] = waiter = asyncio.get_running_loop().create_future()
        connection.ask(self.requests.next(), began or time.perf_counter())
        fault = await waiter
        if not connection.lost:
            self.idle.append(connection)
        if fault:
            await asyncio.sleep(PAUSE)

    async def closed(self, clients: int, seconds: float) -> None:
        """Closed loop: each client sends its next request when it has its response."""
        end = time.perf_counter() + seconds

        async def client() -> None:
            while time.perf_counter() < end:
                await self.ask()

        await self.finish({asyncio.ensure_future(client()) for _ in range(clients)}, seconds)

    async def open(self, rate: float, seconds: float) -> None:
        """Poisson arrivals, `rate` a second, whatever is answered; latency counts from the arrival on."""
        began, at, tasks = time.perf_counter(), 0.0, set()
        arrivals = random.Random(0)
        while (at := at + arrivals.expovariate(rate)) < seconds:
            if (wait := began + at - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            if len(self.waiters) >= MAX_IN_FLIGHT:
                self.errors[f"{MAX_IN_FLIGHT} in flight"] += 1
                continue
            tasks.add(task := asyncio.ensure_future(self.ask(began + at)))
            task.add_done_callback(tasks.discard)
        await self.finish(tasks, 0.0)

    async def finish(self, tasks: Collection[asyncio.Future[None]], seconds: float) -> None:
        done, late = await asyncio.wait(tasks, timeout=seconds + PATIENCE) if tasks else (set(), set())
        if late:
            self.errors[f"no answer within {PATIENCE:g} s"] += len(late)
        for task in done:
            task.result()


async def run(case: dict[str, Any]) -> dict[str, Any]:
    pngs = [base64.b64decode(text) for text in json.loads(Path(case["pngs"]).read_text())]
    load = Load(case["port"], Requests(case["kind"], case["images"], case["first_seed"], pngs))
    began, cpu = time.perf_counter(), time.process_time()
    if case["rate"]:
        await load.open(case["rate"], case["seconds"])
    else:
        await load.closed(case["clients"], case["seconds"])
    wall, latencies = load.last - began, sorted(load.latencies)
    answered = case["images"] * len(latencies)
    return {
        "images": answered,
        "images_per_second": answered / wall if latencies else 0.0,
        "p50_ms": 1e3 * latencies[len(latencies) // 2] if latencies else None,
        "p99_ms": 1e3 * latencies[int(0.99 * len(latencies))] if latencies else None,
        "errors": dict(load.errors),
        "load_cores": (time.process_time() - cpu) / wall if latencies else None,
    }


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    print(json.dumps(uvloop.run(run(json.loads(sys.argv[1])))))
