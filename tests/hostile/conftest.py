"""A service in a process of its own, and what it costs while a hostile request is answered."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

import psutil
import pytest

from tests.e2e.conftest import PATIENCE, Running
from tests.stress.conftest import SHIPPED, STRESS, running

MEMORY = 1024  # MiB, of the service and its decoders
LIVE = 0.25 if STRESS >= 1 else 2.0  # seconds for /livez: on an idle machine, and beside the rest of the suite


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes
    seconds: float


@dataclass
class Victim:
    service: Running
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def address(self) -> tuple[str, int]:
        url = urlsplit(str(self.service.client.base_url))
        assert url.hostname
        assert url.port
        return url.hostname, url.port

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.service.process.pid)

    def ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        """One request on a connection of its own."""
        began = time.perf_counter()
        connection = http.client.HTTPConnection(*self.address, timeout=PATIENCE)
        try:
            connection.request(method, path, body or None, headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read(), time.perf_counter() - began)
        finally:
            connection.close()

    def metric(self, line: str) -> float:
        found = [text for text in self.ask("GET", "/metrics").body.decode().splitlines() if text.startswith(line)]
        return float(found[0].rpartition(" ")[2]) if found else 0.0


class Watch:
    """The peak of resident memory of a process with its children, and the slowest answer of /livez."""

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self.memory = 0.0  # MiB
        self.slowest = 0.0  # seconds
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=target) for target in (self._weigh, self._probe)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _weigh(self) -> None:
        while not self._ended.wait(0.02):
            try:
                family = [self.victim.process, *self.victim.process.children(recursive=True)]
                self.memory = max(self.memory, sum(member.memory_info().rss for member in family) / 2**20)
            except psutil.NoSuchProcess:  # a decoder was replaced, or the service has ended
                continue

    def _probe(self) -> None:
        connection = http.client.HTTPConnection(*self.victim.address, timeout=PATIENCE)
        with closing(connection):
            while not self._ended.wait(0.05):
                began = time.perf_counter()
                try:
                    connection.request("GET", "/livez")
                    connection.getresponse().read()
                except (OSError, http.client.HTTPException):  # the process has ended, which the tests check
                    return
                self.slowest = max(self.slowest, time.perf_counter() - began)


Serve = Callable[..., Iterator[Victim]]


@pytest.fixture
def serve(tmp_path: object) -> Callable[..., object]:
    """Starts a service that the test may stop."""

    @contextmanager
    def start(*command: str, **settings: object) -> Iterator[Victim]:
        with running(tmp_path, *(command or SHIPPED), **settings) as service:  # type: ignore[arg-type]
            yield Victim(service)

    return start


@pytest.fixture(scope="session")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """A service that the tests share: whatever they send, it stays up."""
    with running(tmp_path_factory.mktemp("victim"), *SHIPPED, cors_origins="https://a.example") as service:
        yield Victim(service)
