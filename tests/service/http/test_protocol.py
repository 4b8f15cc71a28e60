"""Connections of a real server: what a client may send, for how long, and that nothing is kept for one that left."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from fastapi import FastAPI

from ddaebm.service.app import create_app
from ddaebm.service.server import Server, configure
from ddaebm.service.settings import Settings
from tests.service.conftest import PATIENCE, PROBLEM_MEMBERS, FakeEngine, wait_until

GET = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
SAMPLE = b"POST /v1/samples HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"


def sample(n: int = 1) -> bytes:
    body = json.dumps({"n": n}).encode()
    return SAMPLE % (len(body), body)


class Client:
    """A plain socket."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.read = b""

    def send(self, data: bytes) -> "Client":
        self.socket.sendall(data)
        return self

    def rest(self) -> bytes:
        """All that comes until the server closes."""
        while piece := self.socket.recv(2**16):
            self.read += piece
        return self.read

    def answers(self, count: int) -> bytes:
        """All that has come once that many answers are complete."""
        while self._complete() < count:
            piece = self.socket.recv(2**16)
            assert piece, self.read
            self.read += piece
        return self.read

    def _complete(self) -> int:
        count, rest = 0, self.read
        while b"\r\n\r\n" in rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            if length and len(rest) < int(length[1]):
                break
            rest = rest[int(length[1]) if length else 0 :]
            count += 1
        return count

    def is_open(self) -> bool:
        """After a question that is answered."""
        try:
            self.read = b""
            self.send(GET)
            while not self._complete():
                piece = self.socket.recv(2**16)
                if not piece:
                    return False
                self.read += piece
        except ConnectionError:
            return False
        return True


class Live:
    """A server on a thread and a port of its own."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self.app = app
        self.server = Server(configure(app, settings))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        wait_until(lambda: self.server.started)
        self.port: int = self.server.servers[0].sockets[0].getsockname()[1]
        self.clients = ExitStack()

    def client(self) -> Client:
        client = Client(self.port)
        self.clients.callback(client.socket.close)
        return client

    def metric(self, name: str, **labels: str) -> float:
        return self.app.state.service.metrics.registry.get_sample_value(name, labels) or 0.0

    def rejected(self, reason: str) -> float:
        return self.metric("ddaebm_rejected_total", reason=reason)

    def close(self) -> None:
        self.clients.close()
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


Start = Callable[..., Live]


@pytest.fixture
def start(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr("ddaebm.service.server.log_config", lambda form: None)  # which is of the whole process
    with ExitStack() as stack:

        def run(**settings: Any) -> Live:
            chosen = Settings(port=0, **settings)
            live = Live(create_app(chosen, engine), chosen)
            stack.callback(live.close)
            stack.callback(engine.release)
            return live

        yield run


def check_refusal(answer: bytes, status: int, slug: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0].startswith(b"http/1.1 %d " % status), answer
    assert {b"connection: close", b"content-type: application/problem+json", b"x-content-type-options: nosniff"} < {
        *lines
    }
    problem = json.loads(body)
    assert problem.keys() >= PROBLEM_MEMBERS
    assert problem["type"] == f"urn:ddaebm:error:{slug}"
    assert b"x-request-id: " + problem["request_id"].encode() in lines


def headers(count: int, size: int) -> bytes:
    return b"".join(b"H%d: %s\r\n" % (i, b"x" * size) for i in range(count))


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\r\nA: " + b"x" * 1100 + b"\r\n\r\n",
        b"GET /livez?" + b"x" * 1100 + b" HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n" + headers(10, 100) + b"\r\n",
        b"GET /livez HTTP/1.1\r\n" + headers(21, 1) + b"\r\n",
        b"GET /livez HTTP/1.1\r\n" + headers(1000, 1),
        b"GET /" + b"x" * 10**6,
        b"GET / HTTP/1.1\r\nA: " + b"x" * 10**6,
        b"\r\n" * 10**6,
    ],
    ids=["one header", "the line", "all headers", "number", "number, no end", "the line, no end", "no end", "blank"],
)
def test_headers_that_are_too_large_are_431(start: Start, head: bytes) -> None:
    live = start(max_header_bytes=1024, max_headers=20)
    client = live.client()
    for i in range(0, len(head), 1000):
        client.send(head[i : i + 1000])
    check_refusal(client.rest(), 431, "headers-too-large")
    assert live.rejected("headers_too_large") == 1
    assert live.metric("ddaebm_http_requests_total", route="unmatched", method="other", status="431") == 1


def test_headers_may_be_as_large_as_the_limit_in_pieces_and_one_after_the_other(start: Start) -> None:
    client = start(max_header_bytes=1000, max_headers=2).client()
    head = b"GET /livez HTTP/1.1\r\nA: " + b"x" * 900 + b"\r\nB: " + b"x" * 80 + b"\r\n\r\n"
    for i in range(0, 10 * len(head), 700):
        client.send((10 * head)[i : i + 700])
    assert client.answers(10).count(b"HTTP/1.1 200 ") == 10


@pytest.mark.parametrize("over", [0, 1])
def test_headers_have_the_limit_s_bytes_and_no_more(start: Start, over: int) -> None:
    """A header counts with colon, space and line end."""
    live = start(max_header_bytes=1000)
    client = live.client().send(b"GET /livez HTTP/1.1\r\nA: " + b"x" * (1000 - len(b"/livez") - 5 + over) + b"\r\n\r\n")
    if over:
        check_refusal(client.rest(), 431, "headers-too-large")
    else:
        assert client.answers(1).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("over", [0, 1])
def test_headers_that_are_not_complete_have_the_limit_s_bytes_and_no_more(start: Start, over: int) -> None:
    head = b"GET /livez HTTP/1.1\r\nA: " + b"x" * 978 + b"\r\n\r\n"
    client = start(max_header_bytes=1000).client()
    client.send(GET + head[:1])  # the piece in which a request begins is not counted
    client.answers(1)
    client.send(head[1 : 1001 + over])
    if over:
        assert b"HTTP/1.1 431 " in client.rest()
    else:
        time.sleep(0.05)  # decides nothing: in one piece or two, it is taken
        client.send(head[1001:])
        assert client.answers(2).count(b"HTTP/1.1 200 ") == 2


def test_a_body_does_not_count_as_headers(start: Start) -> None:
    body = b'{"n": 1}' + b" " * 60_000
    client = start(max_header_bytes=256).client()
    client.send(SAMPLE % (len(body), body) + GET)
    assert client.answers(2).count(b"HTTP/1.1 200 ") == 2
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body[:2000]) + b"0\r\n\r\n"
    client.send((SAMPLE % (0, b"")).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + chunks)
    assert client.answers(3).count(b"HTTP/1.1 200 ") == 3


@pytest.mark.parametrize("tail", [b"0\r\nTrailer: ", b"0\r\n" + headers(5000, 1), b"5;name="], ids=repr)
def test_trailers_and_chunk_extensions_are_bounded_as_well(start: Start, tail: bytes) -> None:
    live = start(max_header_bytes=1024)
    client = live.client()
    client.send(b"POST /v1/scores HTTP/1.1\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n" + tail)
    client.send(b"x" * 2**20)
    check_refusal(client.rest(), 431, "headers-too-large")
    wait_until(lambda: live.metric("ddaebm_http_requests_total", route="/v1/scores", method="POST", status="499"))


@pytest.mark.parametrize(
    "head", [b"nonsense", b"GET / HTTP/1.1\r\n\x00: a", b"CONNECT a:1 HTTP/1.1", b"GET http://[ HTTP/1.1"]
)
def test_what_is_no_http_is_400(start: Start, head: bytes) -> None:
    live = start()
    check_refusal(live.client().send(head + b"\r\n\r\n").rest(), 400, "malformed-request")
    assert live.rejected("malformed_request") == 1


def test_head_has_no_body_and_leaves_the_connection_open(start: Start) -> None:
    client = start().client().send(b"HEAD /v1/samples/9.png HTTP/1.1\r\n\r\n" + GET)
    head, _, rest = client.answers(2).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in head
    assert rest.startswith(b"HTTP/1.1 200 ")


def test_an_upgrade_that_is_not_offered_is_a_request_like_any_other(start: Start) -> None:
    client = start().client()
    for protocol in (b"h2c", b"websocket"):
        client.send(b"GET /livez HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: " + protocol + b"\r\n\r\n" + GET)
    assert client.answers(4).count(b"HTTP/1.1 200 ") == 4


@pytest.mark.parametrize("before", [0, 1])
def test_headers_that_trickle_are_408(start: Start, before: int) -> None:
    live = start(header_seconds=0.3)
    client = live.client()
    client.send(GET * before).answers(before)
    began, client.read = time.monotonic(), b""
    client.socket.settimeout(0.01)
    with pytest.raises(ConnectionError):  # noqa: PT012
        for byte in GET * 100:
            client.send(bytes([byte]))
            try:
                client.read += client.socket.recv(2**16)
                break
            except TimeoutError:
                continue
        client.socket.settimeout(PATIENCE)
        client.rest()
        raise ConnectionError
    assert 0.2 < time.monotonic() - began < PATIENCE
    check_refusal(client.read, 408, "slow-headers")
    assert live.rejected("slow_headers") == 1


@pytest.mark.parametrize(("before", "after"), [(b"", b""), (b"", b"\r\n"), (GET, b"")])
def test_an_idle_connection_is_closed_without_a_word(start: Start, before: bytes, after: bytes) -> None:
    live = start(header_seconds=0.2, keep_alive_seconds=1)
    client = live.client()
    answers = before.count(b"GET")
    client.send(before).answers(answers)
    assert client.send(after).rest().count(b"HTTP/1.1") == answers
    assert live.rejected("slow_headers") == 0


def test_a_connection_is_kept_while_its_request_is_computed(start: Start, engine: FakeEngine) -> None:
    client = start(header_seconds=0.1, keep_alive_seconds=1, send_seconds=0.1).client()
    with engine.blocked():
        client.send(sample() + GET[:9])  # the beginning of the next one has its time from the answer on
        time.sleep(0.3)
    assert client.answers(1).startswith(b"HTTP/1.1 200 ")


def test_the_rest_of_a_body_that_nobody_reads_has_its_time(start: Start) -> None:
    client = start(body_seconds=0.2).client()
    began = time.monotonic()
    client.send(b"POST /nowhere HTTP/1.1\r\nContent-Length: 1000\r\n\r\n")
    assert client.rest().startswith(b"HTTP/1.1 404 ")
    assert 0.1 < time.monotonic() - began < PATIENCE


def test_a_client_sees_why_its_body_is_refused_while_it_sends_it(start: Start) -> None:
    client = start().client()
    size = 20 * 2**20
    client.send(b"POST /v1/samples HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size)
    client.send(b"x" * size)
    assert client.rest().startswith(b"HTTP/1.1 413 ")
