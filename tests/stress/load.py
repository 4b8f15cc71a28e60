"""A load generator on asyncio's streams: it costs the machine that it shares with the service little."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from prometheus_client.parser import text_string_to_metric_families

PATIENCE = 60.0  # seconds: no request of these tests takes as long on a machine that works
_IDLE = 2.0  # seconds that a connection may lie unused; uvicorn closes them after 5


class TornAnswerError(Exception):
    """The connection was closed within an answer."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    began: float  # perf_counter seconds
    seconds: float

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Client:
    """Requests to one server, over connections that are kept alive; as many at once as are asked for.

    What is not answered raises: OSError a connection refused or reset, EOFError one that was closed before an answer,
    TornAnswerError within it.
    """

    host: str
    port: int
    _idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def post(self, path: str, body: Any, **headers: str) -> Answer:
        """`body` as JSON, or bytes of the content_type among the headers; an _ in a name is a -."""
        if not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"content_type": "application/json", **headers}
        return await self.ask("POST", path, body, **headers)

    async def get(self, path: str) -> Answer:
        return await self.ask("GET", path)

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        began = time.perf_counter()
        reader, writer = await self._connection()
        try:
            async with asyncio.timeout(PATIENCE):
                writer.write(request_bytes(method, path, body, **headers))
                status, fields, content = await _read(reader)
        except BaseException:
            await hang_up(writer)
            raise
        if fields.get("connection") == "close":
            await hang_up(writer)
        else:
            self._idle.append((time.perf_counter(), reader, writer))
        return Answer(status, fields, content, began, time.perf_counter() - began)

    async def metric(self, name: str, **labels: str) -> float:
        """The sum over a metric's samples with these labels; KeyError where the service has none of its name."""
        families = text_string_to_metric_families((await self.get("/metrics")).body.decode())
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        if not samples:
            raise KeyError(name)
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Connections that are not in use; a later request opens another one."""
        while self._idle:
            await hang_up(self._idle.pop()[2])

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            since, reader, writer = self._idle.pop()
            if time.perf_counter() - since < _IDLE and not reader.at_eof():
                return reader, writer
            await hang_up(writer)
        return await asyncio.open_connection(self.host, self.port)


def request_bytes(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    fields = {"host": "localhost", "content-length": str(len(body)), **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode() + body


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):  # the server may have cut it off first
        await writer.wait_closed()


async def _read(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    begun = False
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        begun = True
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status = int(first.split()[1])
        length = 0 if status in (204, 304) else int(fields["content-length"])
        return status, fields, await reader.readexactly(length)
    except (OSError, asyncio.IncompleteReadError) as error:
        if begun or getattr(error, "partial", b""):
            raise TornAnswerError from error
        raise


async def closed_loop(ask: Callable[[int], Awaitable[Answer]], clients: int, until: Callable[[], bool]) -> list[Answer]:
    """`clients` that each ask again as soon as they are answered, until `until()`; every answer."""
    answers: list[Answer] = []
    count = iter(range(10**9))

    async def client() -> None:
        while not until():
            answers.append(await ask(next(count)))

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


async def open_loop(ask: Callable[[int], Awaitable[Answer]], rate: float, seconds: float) -> list[Answer]:
    """`rate` requests a second for `seconds`, whether they are answered or not; every answer, once all are there."""
    began = time.perf_counter()
    tasks: list[asyncio.Task[Answer]] = []
    while (passed := time.perf_counter() - began) < seconds:
        while len(tasks) < rate * passed:
            tasks.append(asyncio.ensure_future(ask(len(tasks))))
        await asyncio.sleep(0.005)
    return list(await asyncio.gather(*tasks))


async def until(condition: Callable[[], Awaitable[object]], patience: float = PATIENCE) -> float:
    """Waits for what announces itself by no event; the seconds it took."""
    began = time.perf_counter()
    while not await condition():
        if time.perf_counter() - began > patience:
            raise TimeoutError("waited in vain")
        await asyncio.sleep(0.01)
    return time.perf_counter() - began
