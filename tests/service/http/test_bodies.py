"""Bytes of bodies over all requests: what comes is counted, what ends is given back, and small ones always pass."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError

import ddaebm.service.routes.scores
from ddaebm.service.app import create_app
from ddaebm.service.http.bodies import SMALL_BODY, Bodies, Body
from ddaebm.service.http.errors import Problem
from ddaebm.service.settings import Settings
from tests.service.conftest import PATIENCE, FakeEngine, MakeClient, check_problem, files, metric, png, wait_until

LIMIT = 4 * SMALL_BODY


def test_all_but_the_first_64_kib_of_each_body_counts() -> None:
    bodies = Bodies(100, seconds=30)
    first, second = Body(bodies), Body(bodies)
    first.add(SMALL_BODY)
    second.add(SMALL_BODY + 60)
    first.add(40)
    assert bodies.held == 100
    with pytest.raises(Problem, match="try again"):
        first.add(1)
    assert (first.refused, second.refused) == (True, False)
    second.release()
    second.release()
    first.add(1)
    first.release()
    assert bodies.held == 0


def test_what_is_announced_is_refused_at_once_and_costs_nothing() -> None:
    bodies = Bodies(100, seconds=30)
    body = Body(bodies)
    body.announce(SMALL_BODY + 100)
    with pytest.raises(Problem):
        body.announce(SMALL_BODY + 101)
    assert bodies.held == 0


def padded(size: int) -> bytes:
    return png() + bytes(size - len(png()))


async def upload(app: FastAPI, sizes: list[int], meanwhile: int) -> list[httpx.Response]:
    """Bodies of `sizes` all there but for their ends, then one of `meanwhile` bytes; its answer comes first."""
    go = asyncio.Event()
    ready = asyncio.Semaphore(0)

    async def body(size: int) -> AsyncIterator[bytes]:
        yield padded(size)
        ready.release()
        await go.wait()
        yield b""

    headers = {"content-type": "image/png"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        posts = [asyncio.create_task(client.post("/v1/scores", content=body(n), headers=headers)) for n in sizes]
        for _ in sizes:
            await ready.acquire()
        late = await client.post("/v1/scores", content=padded(meanwhile), headers=headers)
        go.set()
        ended = [await post for post in posts]
        again = await client.post("/v1/scores", content=padded(meanwhile), headers=headers)
        return [late, *ended, again, await client.get("/metrics")]


@pytest.mark.parametrize("meanwhile", [SMALL_BODY, SMALL_BODY + 1])
def test_bodies_that_do_not_fit_beside_others_are_429(engine: FakeEngine, meanwhile: int) -> None:
    app = create_app(Settings(max_body_bytes=LIMIT, max_bodies_bytes=LIMIT), engine)
    sizes = [SMALL_BODY + LIMIT // 2] * 2
    test = upload(app, sizes, meanwhile)
    late, *others, metrics = asyncio.run(asyncio.wait_for(test, PATIENCE))
    assert [post.status_code for post in others] == [200, 200, 200]
    if meanwhile == SMALL_BODY:
        assert late.status_code == 200
        return
    check_problem(late, 429, "bodies-full")
    assert late.headers["retry-after"] == "30"  # the others have all of their time
    assert late.headers["connection"] == "close"
    assert 'ddaebm_rejected_total{reason="bodies_full"} 1.0' in metrics.text
    assert 'reason="queue_full"' not in metrics.text


@pytest.mark.parametrize("status", [200, 413, 422])
def test_every_request_gives_its_bytes_back(make_client: MakeClient, status: int) -> None:
    client = make_client(max_body_bytes=LIMIT, max_bodies_bytes=LIMIT)
    body = {200: padded(LIMIT), 413: bytes(LIMIT + 1), 422: bytes(LIMIT)}[status]
    for _ in range(3):  # each needs more than half of what there is
        answer = client.post("/v1/scores", content=body, headers={"content-type": "image/png"})
        assert answer.status_code == status


def test_the_bytes_are_given_back_once_the_images_are_decoded(make_client: MakeClient, engine: FakeEngine) -> None:
    client = make_client(max_body_bytes=LIMIT, max_bodies_bytes=LIMIT)
    headers = {"content-type": "image/png"}
    with ThreadPoolExecutor(2) as pool, engine.blocked():
        posts = [pool.submit(client.post, "/v1/scores", content=padded(LIMIT), headers=headers)]
        assert engine.entered.wait(PATIENCE)
        posts.append(pool.submit(client.post, "/v1/scores", content=padded(LIMIT), headers=headers))
        wait_until(lambda: metric(client, "ddaebm_queue_images") == 1)
        engine.release()
        assert [post.result(PATIENCE).status_code for post in posts] == [200, 200]


def test_all_bodies_must_hold_one() -> None:
    with pytest.raises(ValidationError, match="must be at least max_body_bytes, which is 20, not 10"):
        Settings(max_body_bytes=20, max_bodies_bytes=10)
    with pytest.raises(ValidationError, match="max_bodies_bytes"):
        Settings(max_body_bytes=2**40)


def test_uploads_that_are_slow_to_decode_keep_neither_samples_nor_small_answers_waiting(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(decode_threads=2)
    gate, entered = threading.Event(), threading.Semaphore(0)
    decode_quick = ddaebm.service.routes.scores.decode_quick

    def slow(*arguments: object) -> object:
        entered.release()
        assert gate.wait(PATIENCE)
        return decode_quick(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("ddaebm.service.routes.scores.decode_quick", slow)
    with ThreadPoolExecutor(20) as pool:
        posts = [pool.submit(client.post, "/v1/scores", files=files(png())) for _ in range(20)]
        for _ in range(2):
            assert entered.acquire(timeout=PATIENCE)
        assert client.post("/v1/samples", json={"n": 3}).status_code == 200
        late = client.post("/v1/scores", files=files(png()), headers={"x-request-timeout": "0.05"})
        check_problem(late, 504, "deadline")
        assert not entered.acquire(timeout=0.05)  # two at a time
        gate.set()
        assert [post.result(PATIENCE).status_code for post in posts] == [200] * 20
