"""Many connections, pipelined requests and slow readers."""

import time

import pytest

from tests.service.conftest import PATIENCE, FakeEngine, wait_until
from tests.service.http import test_protocol
from tests.service.http.test_protocol import GET, Start, check_refusal, sample

start = test_protocol.start  # the fixture


def test_the_oldest_idle_connection_makes_room_for_one_more(start: Start) -> None:
    live = start(max_connections=3)
    clients = [live.client() for _ in range(3)]
    for client in clients:
        assert client.is_open()
    assert clients[0].is_open()  # which makes the second the one that has been idle for longest
    assert live.client().is_open()
    assert [client.is_open() for client in clients] == [True, False, True]
    assert live.rejected("too_many_connections") == 1
    assert live.metric("ddaebm_http_connections") == 3


def test_a_flood_of_idle_connections_keeps_nobody_out(start: Start) -> None:
    live = start(max_connections=20)
    for _ in range(200):
        live.client()
    assert live.client().is_open()
    assert live.metric("ddaebm_http_connections") <= 20


def test_connections_that_are_served_are_not_closed_for_others(start: Start, engine: FakeEngine) -> None:
    live = start(max_connections=2)
    with engine.blocked():
        clients = [live.client().send(sample()) for _ in range(2)]
        wait_until(lambda: len(live.server.server_state.tasks) == 2)
        refused = live.client()
        check_refusal(refused.rest(), 503, "too-many-connections")
        assert live.metric("ddaebm_http_requests_in_flight") == 2
    assert all(client.answers(1).startswith(b"HTTP/1.1 200 ") for client in clients)
    assert live.metric("ddaebm_http_requests_in_flight") == 0


def test_an_upload_that_is_slow_gives_way(start: Start) -> None:
    live = start(max_connections=2)
    slow = [live.client().send(b"POST /v1/scores HTTP/1.1\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n")
            for _ in range(2)]  # fmt: skip
    wait_until(lambda: live.metric("ddaebm_http_connections") == 2)
    assert live.client().is_open()
    assert slow[0].rest() == b""


def test_pipelined_requests_are_answered_up_to_a_limit(start: Start) -> None:
    live = start(max_pipelined=4)
    assert live.client().send(GET * 5).answers(5).count(b"200 OK") == 5
    answers = live.client().send(GET * 5000).rest()
    assert answers.count(b"HTTP/1.1 200 ") == 5
    assert live.rejected("pipelined") == 1


def test_nothing_is_kept_for_a_client_that_pipelines_and_leaves(start: Start, engine: FakeEngine) -> None:
    live = start(max_pipelined=16)
    with engine.blocked():
        client = live.client().send(sample(4) * 10_000)
        assert engine.entered.wait(PATIENCE)
        client.socket.close()
        wait_until(lambda: not live.server.server_state.connections)
        wait_until(lambda: not live.server.server_state.tasks)
    assert live.client().is_open()
    assert engine.calls == [("sample", 4)]  # a batch that is not shared out


@pytest.mark.parametrize("connection", [b"keep-alive", b"close"])
def test_a_client_that_does_not_take_its_answer_is_cut_off(start: Start, connection: bytes) -> None:
    live = start(send_seconds=0.3, keep_alive_seconds=1, max_pipelined=10_000)
    client = live.client()
    request = b"GET /openapi.json HTTP/1.1\r\n\r\n"
    client.send(request * 400 + request.replace(b"\r\n\r\n", b"\r\nConnection: %s\r\n\r\n" % connection))
    wait_until(lambda: live.rejected("slow_reader"))
    wait_until(lambda: not live.server.server_state.connections)
    wait_until(lambda: not live.server.server_state.tasks)


def test_connections_of_every_kind_end_with_the_server(start: Start) -> None:
    live = start()
    for data in (b"", b"GET /", GET, b"POST /nowhere HTTP/1.1\r\nContent-Length: 9\r\n\r\n", b"bad\r\n\r\n"):
        live.client().send(data)
    wait_until(lambda: live.metric("ddaebm_http_connections") == 5)
    began = time.monotonic()
    live.server.should_exit = True
    live.thread.join(PATIENCE)
    assert time.monotonic() - began < 5
    assert not live.thread.is_alive()
