"""How a request's work is run: deadlines, clients that leave, a queue that is full."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from starlette.datastructures import Headers
from starlette.testclient import TestClient
from starlette.types import Message

from ddaebm.model.files import encode_npy
from ddaebm.service.app import create_app
from ddaebm.service.http.context import is_low
from ddaebm.service.queue.batching import Batcher
from ddaebm.service.queue.scheduling import Job, Operation
from ddaebm.service.settings import Settings
from tests.service.conftest import PATIENCE, FakeEngine, MakeClient, check_problem, files, metric, png, wait_until

SAMPLES, SCORES = "/v1/samples", "/v1/scores"


def batcher_of(app: Any) -> Batcher:
    batcher: Batcher = app.state.service.runner.batcher
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
    assert metric(client, "ddaebm_rejected_total", reason="client_deadline") == 1
    if path == SAMPLES:  # decoding may have used up the time of the other
        assert metric(client, "ddaebm_images_dropped_total", reason="deadline") == 3


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


def test_what_cannot_be_done_in_its_time_is_refused_at_once(make_client: MakeClient, engine: FakeEngine) -> None:
    client = make_client()
    batcher = batcher_of(client.app)
    with ThreadPoolExecutor(8) as pool, engine.blocked():
        requests = [pool.submit(client.post, SAMPLES, json={"n": 1})]
        assert engine.entered.wait(PATIENCE)
        requests.append(pool.submit(client.post, SAMPLES, json={"n": 9}))
        wait_until(lambda: batcher.queued == 9)
        for count in (1, 9):
            batcher.admission.observe(Operation(engine, "sample"), count, float(count))  # a second each
        refused = client.post(SAMPLES, json={"n": 1}, headers={"x-request-timeout": "5"})
        assert "5 s" in check_problem(refused, 429, "queue-full")["detail"]
        assert 3 <= int(refused.headers["retry-after"]) <= 6
        engine.release()
        assert [request.result(PATIENCE).status_code for request in requests] == [200] * 2


def test_large_images_are_counted_by_their_pixels(make_client: MakeClient, engine: FakeEngine) -> None:
    engine.side = 128  # each counts as 4
    client = make_client(max_queue_images=10)
    images = np.zeros((3, 8, 6), np.uint8)
    headers = {"content-type": "application/x-npy"}
    refused = client.post("/v1/scores", content=encode_npy(images), headers=headers)
    assert "takes 2 of this size" in check_problem(refused, 413, "too-many-images")["detail"]
    assert client.post("/v1/scores", content=encode_npy(images[:2]), headers=headers).status_code == 200


def test_the_second_half_of_a_request_is_not_refused(make_client: MakeClient, engine: FakeEngine) -> None:
    client = make_client(max_queue_images=10)
    batcher = batcher_of(client.app)
    with ThreadPoolExecutor(8) as pool, engine.blocked():
        best = pool.submit(client.post, SAMPLES, json={"n": 1, "best_of": 8})
        assert engine.entered.wait(PATIENCE)
        others = [pool.submit(client.post, SAMPLES, json={"n": 10})]
        wait_until(lambda: batcher.queued == 10)
        engine.release()  # its scoring meets a queue that may still be full
        assert best.result(PATIENCE).status_code == 200
        assert others[0].result(PATIENCE).status_code == 200


@pytest.mark.parametrize(
    ("header", "low"),
    [("u=7", True), ("u=4, i", True), ("i, u=5", True), ("u=3", False), ("u=0", False), ("", False), ("u=9", False),
     ("fast", False), ("xu=7", False)],
)  # fmt: skip
def test_priority_says_whether_others_may_pass(header: str, low: bool) -> None:
    assert is_low(Headers({"priority": header})) is low


def test_the_queue_is_told_of_the_priority(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    batcher, told = batcher_of(client.app), list[bool]()
    submit = batcher.submit

    def record(*args: Any, **options: Any) -> Job:
        job = submit(*args, **options)
        told.append(job.low)
        return job

    monkeypatch.setattr(batcher, "submit", record)
    infer = {"inputs": [{"name": "seeds", "shape": [1], "datatype": "INT64", "data": [1]}]}
    for priority, parameters in (("u=7", {}), ("u=1", {}), ("", {"priority": 2}), ("", {"priority": 1})):
        body = {**infer, "parameters": parameters}
        answer = client.post("/v2/models/fake-sampler/infer", json=body, headers={"priority": priority})
        assert answer.status_code == 200, answer.text
    assert told == [True, False, True, False]
    check_problem(client.post("/v2/models/fake-sampler/infer", json={**infer, "parameters": {"priority": "high"}}), 422)


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
    app = create_app(Settings(workers=1), engine)
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
            occupying = batcher.submit(Operation(engine, "sample"), np.zeros(1, dtype=np.int64))
            assert await asyncio.to_thread(engine.entered.wait, PATIENCE)
            request = asyncio.create_task(app(scope, receive, send))
            await asyncio.to_thread(wait_until, lambda: batcher.queued)
            queued = batcher.queued
            hung_up.set()
            await asyncio.wait_for(request, PATIENCE)
            left = batcher.queued
        await occupying.future
    labels = {"route": SAMPLES, "method": "POST", "status": "499"}
    registry = app.state.service.metrics.registry
    assert registry.get_sample_value("ddaebm_http_requests_total", labels) == 1
    assert registry.get_sample_value("ddaebm_images_dropped_total", {"reason": "client-gone"}) == queued
    return queued, left


def test_work_of_a_client_that_left_is_dropped_from_the_queue(engine: FakeEngine) -> None:
    queued, left = asyncio.run(leave_while_queued(engine))
    assert (queued, left) == (7, 0)
    assert engine.calls == [("sample", 1)]
