"""An inference thread that dies or hangs: another one once, then the end of the process."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from ddaebm.service.app import create_app
from ddaebm.service.server import serve
from ddaebm.service.settings import Settings
from ddaebm.service.state import Service
from tests.service.conftest import PATIENCE, FakeEngine, MakeClient, check_problem, metric, wait_until

SAMPLES, ONE = "/v1/samples", {"n": 1}
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def service_of(app: Any) -> Service:
    return cast(Service, cast(FastAPI, app).state.service)


def test_after_a_thread_died_another_one_answers_and_those_who_waited_lost_nothing(
    client: TestClient, engine: FakeEngine
) -> None:
    with ThreadPoolExecutor() as pool, engine.blocked():
        running = pool.submit(client.post, SAMPLES, json=ONE)
        assert engine.entered.wait(PATIENCE)
        waiting = pool.submit(client.post, SAMPLES, json=ONE)
        wait_until(lambda: service_of(client.app).runner.batcher.queued)
        engine.fault = SystemExit()
        engine.release()
        assert check_problem(running.result(PATIENCE), 503, "not-ready")["detail"].endswith("try again")
        assert running.result().headers["retry-after"] == "1"
        assert waiting.result(PATIENCE).status_code == 200
    assert client.get("/readyz").status_code == client.get("/livez").status_code == 200
    assert metric(client, "ddaebm_inference_restarts_total") == 1


def test_a_hung_thread_is_replaced(make_client: MakeClient, engine: FakeEngine) -> None:
    client = make_client(hang_seconds=0.05)
    with ThreadPoolExecutor() as pool, engine.blocked():
        lost = pool.submit(client.post, SAMPLES, json=ONE)
        check_problem(lost.result(PATIENCE), 503, "not-ready")
    assert client.post(SAMPLES, json=ONE).status_code == 200
    assert metric(client, "ddaebm_inference_restarts_total") == 1


def test_the_second_death_fails_the_probes_and_tells_all_who_wait(client: TestClient, engine: FakeEngine) -> None:
    engine.fault = SystemExit()
    check_problem(client.post(SAMPLES, json=ONE), 503)
    wait_until(lambda: client.post(SAMPLES, json=ONE).status_code == 200)
    headers = {"x-request-timeout": "5"}  # so that a request left hanging shows as 504
    with ThreadPoolExecutor() as pool, engine.blocked():
        first = pool.submit(client.post, SAMPLES, json=ONE, headers=headers)
        assert engine.entered.wait(PATIENCE)
        second = pool.submit(client.post, SAMPLES, json=ONE, headers=headers)
        wait_until(lambda: service_of(client.app).runner.batcher.queued)
        engine.fault = SystemExit()
        engine.release()
        check_problem(first.result(PATIENCE), 503, "not-ready")
        check_problem(second.result(PATIENCE), 503, "not-ready")
    wait_until(lambda: service_of(client.app).runner.failed)
    assert "twice" in check_problem(client.get("/readyz"), 503, "not-ready")["detail"]
    check_problem(client.get("/livez"), 503, "not-live")
    check_problem(client.post(SAMPLES, json=ONE), 503, "not-ready")
    assert metric(client, "ddaebm_inference_restarts_total") == 1


def test_a_thread_that_is_only_busy_is_left_alone(
    make_client: MakeClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, looks = make_client(hang_seconds=30), list[float]()
    decoders = service_of(client.app).runner.decoders
    with ThreadPoolExecutor() as pool, engine.blocked():
        busy = pool.submit(client.post, SAMPLES, json=ONE)
        assert engine.entered.wait(PATIENCE)
        monkeypatch.setattr(decoders, "tend", lambda: looks.append(time.monotonic()))  # once each time it looks
        wait_until(lambda: len(looks) >= 3)
        engine.release()
        assert busy.result(PATIENCE).status_code == 200
    assert metric(client, "ddaebm_inference_restarts_total") == 0


def test_the_process_ends_with_1_when_the_service_failed(engine: FakeEngine) -> None:
    app, settings = create_app(Settings(port=0), engine), Settings(port=0)
    codes: list[int] = []
    server = threading.Thread(target=lambda: codes.append(serve(app, settings)))
    server.start()
    wait_until(lambda: hasattr(app.state, "service"))
    service_of(app).runner.failed = True
    server.join(PATIENCE)
    assert codes == [1]
