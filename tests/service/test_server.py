"""uvicorn's signals: a drain is announced before it begins."""

import signal

import uvicorn
from starlette.testclient import TestClient

from service.server import Server
from tests.service.conftest import check_problem


def test_a_signal_makes_the_service_unready_and_the_server_stop(client: TestClient) -> None:
    server = Server(uvicorn.Config(client.app))
    assert client.get("/readyz").status_code == 200
    server.on_signal(signal.SIGTERM, None)
    check_problem(client.get("/readyz"), 503, "not-ready")
    assert server.should_exit
    assert not server.force_exit


def test_a_second_interrupt_ends_at_once(client: TestClient) -> None:
    server = Server(uvicorn.Config(client.app))
    for _ in range(2):
        server.on_signal(signal.SIGINT, None)
    assert server.force_exit


def test_signals_are_handled_while_serving_and_given_back_after(client: TestClient) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    server = Server(uvicorn.Config(client.app))
    with server.capture_signals():
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == server.on_signal
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
