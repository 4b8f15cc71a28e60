"""How a request's work is run: deadlines, clients that leave, a queue that is full."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from starlette.types import Message

from service.app import create_app
from service.batching import Batcher
from service.settings import Settings
from tests.service.conftest import PATIENCE, FakeEngine, MakeClient, check_problem, files, metric, png, wait_until

SAMPLES, SCORES = "/v1/samples", "/v1/scores"


def batcher_of(app: Any) -> Batcher:
    batcher: Batcher = app.state.service.batcher
    return batcher


@pytest.mark.parametrize(("path", "body"), [(SAMPLES, {"json": {"n": 3}}), (SCORES, {"files": files(png(), png())})])
def test_a_request_past_its_deadline_is_504_and_its_work_is_dropped(
    client: TestClient, engine: FakeEngine, path: str, body: dict[str, Any]
) -> None:
    with ThreadPoolExecutor(8) as pool, engine.blocked():
        running = pool.submit(client.post, SAMPLES, json={"n": 1})
        assert engine.entered.wait(PATIENCE)
        response = client.post(path, **body, headers={"x-request-timeout": "0.05"})
        assert "0.05 s" in check_problem(response, 504, "deadline")["detail"]
        assert batcher_of(client.app).queued == 0
        engine.release()
        assert running.result(PATIENCE).status_code == 200
    assert client.post(SAMPLES, json={"n": 2}).status_code == 200
    assert engine.calls == [("sample", 1), ("sample", 2)]
    assert metric(client, "ddaebm_rejected_total", reason="deadline") == 1


def test_a_call_that_does_not_return_is_bounded_by_the_deadline_too(
    make_client: MakeClient, engine: FakeEngine
) -> None:
    client = make_client(deadline_seconds=0.05)
    with engine.blocked():
        check_problem(client.post(SAMPLES, json={}), 504, "deadline")


def test_a_request_cannot_lengthen_the_deadline(make_client: MakeClient, engine: FakeEngine) -> None:
    client = make_client(deadline_seconds=0.05)
    with engine.blocked():
        response = client.post(SAMPLES, json={}, headers={"x-request-timeout": "3600"})
    assert "0.05 s" in check_problem(response, 504)["detail"]


@pytest.mark.parametrize("timeout", ["5", "0.5", "1e1", "inf", " 5 "])
def test_a_request_in_time_is_not_disturbed(client: TestClient, timeout: str) -> None:
    assert client.post(SAMPLES, json={}, headers={"x-request-timeout": timeout}).status_code == 200


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "-inf", "soon", "", "5 s", "1,5"])
def test_a_timeout_that_is_no_time_is_400(client: TestClient, engine: FakeEngine, timeout: str) -> None:
    response = client.post(SAMPLES, json={}, headers={"x-request-timeout": timeout})
    check_problem(response, 400, "bad-timeout")
    assert not engine.calls


def test_a_full_queue_is_429_with_whole_seconds_to_wait(make_client: MakeClient, engine: FakeEngine) -> None:
    client = make_client(max_queue_images=10)
    with ThreadPoolExecutor(8) as pool, engine.blocked():
        requests = [pool.submit(client.post, SAMPLES, json={"n": 1})]
        assert engine.entered.wait(PATIENCE)
        requests.append(pool.submit(client.post, SAMPLES, json={"n": 9}))
        wait_until(lambda: batcher_of(client.app).queued == 9)
        for response in (
            client.post(SAMPLES, json={"n": 2}),
            client.post(SCORES, files=files(png(), png())),
        ):
            check_problem(response, 429, "queue-full")
            assert int(response.headers["retry-after"]) >= 1
        requests.append(pool.submit(client.post, SAMPLES, json={"n": 1}))  # this still fits
        wait_until(lambda: batcher_of(client.app).queued == 10)
        engine.release()
        assert [request.result(PATIENCE).status_code for request in requests] == [200] * 3
    assert client.post(SAMPLES, json={"n": 10}).status_code == 200
    assert metric(client, "ddaebm_rejected_total", reason="queue_full") == 2


def test_a_request_that_the_queue_can_never_hold_is_413(make_client: MakeClient, engine: FakeEngine) -> None:
    client = make_client(max_queue_images=10)
    response = client.post(SAMPLES, json={"n": 11})
    assert "10" in check_problem(response, 413, "too-many-images")["detail"]
    assert "retry-after" not in response.headers
    assert not engine.calls


def test_after_the_batcher_stopped_requests_are_503(client: TestClient) -> None:
    assert batcher_of(client.app).close(PATIENCE)
    check_problem(client.post(SAMPLES, json={}), 503, "not-ready")
    assert metric(client, "ddaebm_rejected_total", reason="not_ready") == 1


def test_requests_of_many_clients_share_a_batch_and_each_gets_its_own(client: TestClient, engine: FakeEngine) -> None:
    alone = [client.post(SAMPLES, json={"n": 3, "seed": seed}).content for seed in range(6)]
    engine.calls.clear()
    with ThreadPoolExecutor(8) as pool, engine.blocked():
        first = pool.submit(client.post, SAMPLES, json={})
        assert engine.entered.wait(PATIENCE)
        requests = [pool.submit(client.post, SAMPLES, json={"n": 3, "seed": seed}) for seed in range(6)]
        wait_until(lambda: batcher_of(client.app).queued == 18)
        engine.release()
        assert first.result(PATIENCE).status_code == 200
        assert [request.result(PATIENCE).content for request in requests] == alone
    assert engine.calls == [("sample", 1), ("sample", 18)]


async def leave_while_queued(engine: FakeEngine) -> tuple[int, int]:
    """A client by hand: it hangs up while its request is queued. Returns the rows queued before and after."""
    app = create_app(Settings(), engine)
    hung_up = asyncio.Event()
    body = [{"type": "http.request", "body": b'{"n": 7}', "more_body": False}]

    async def receive() -> Message:
        if body:
            return body.pop()
        await hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        pass

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": SAMPLES,
        "raw_path": SAMPLES.encode(), "query_string": b"", "headers": [(b"content-type", b"application/json")],
        "scheme": "http", "server": ("test", 80), "client": ("test", 1), "root_path": "",
    }  # fmt: skip
    async with app.router.lifespan_context(app):
        batcher = batcher_of(app)
        with engine.blocked():
            occupying = batcher.submit(engine.sample, np.zeros(1, dtype=np.int64))
            assert await asyncio.to_thread(engine.entered.wait, PATIENCE)
            request = asyncio.create_task(app(scope, receive, send))
            await asyncio.to_thread(wait_until, lambda: batcher.queued)
            queued = batcher.queued
            hung_up.set()
            await asyncio.wait_for(request, PATIENCE)
            left = batcher.queued
        await occupying.future
    labels = {"route": SAMPLES, "method": "POST", "status": "499"}
    assert app.state.service.metrics.registry.get_sample_value("ddaebm_http_requests_total", labels) == 1
    return queued, left


def test_work_of_a_client_that_left_is_dropped_from_the_queue(engine: FakeEngine) -> None:
    queued, left = asyncio.run(leave_while_queued(engine))
    assert (queued, left) == (7, 0)
    assert engine.calls == [("sample", 1)]
