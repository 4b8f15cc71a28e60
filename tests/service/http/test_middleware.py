"""The middleware gives every request an id, a size limit, metrics and a last resort."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from ddaebm.service.app import create_app
from ddaebm.service.settings import Settings
from tests.service.conftest import PATIENCE, FakeEngine, MakeClient, check_problem, files, metric, png

SAMPLES = "/v1/samples"


@pytest.mark.parametrize("path", ["/livez", "/nowhere", SAMPLES])
def test_a_request_id_is_echoed_on_every_answer(client: TestClient, path: str) -> None:
    assert client.get(path, headers={"x-request-id": "abc-123/~"}).headers["x-request-id"] == "abc-123/~"


def test_a_request_without_an_id_is_given_its_own(client: TestClient) -> None:
    ids = {client.get("/livez").headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5


@pytest.mark.parametrize("hostile", ["", " ", "a b", "x" * 129, "é", "a\tb", "\x7f", "a\r\nset-cookie: b"])
def test_a_request_id_unfit_for_a_header_or_a_log_is_replaced(client: TestClient, hostile: str) -> None:
    response = client.get("/livez", headers={"x-request-id": hostile.encode("latin-1")})  # type: ignore[dict-item]
    assert response.headers["x-request-id"] != hostile
    assert response.headers["x-request-id"].isalnum()


def test_server_timing_tells_the_stages_apart(client: TestClient) -> None:
    for response, stages in (
        (client.post(SAMPLES, json={}), ["queue", "infer", "encode"]),
        (client.post("/v1/scores", files=files(png())), ["decode", "queue", "infer"]),
    ):
        timings = dict(entry.split(";dur=") for entry in response.headers["server-timing"].split(", "))
        assert list(timings) == stages
        assert all(float(milliseconds) >= 0 for milliseconds in timings.values())


@pytest.mark.parametrize("over", [0, 1])
def test_a_body_may_be_as_long_as_the_limit_and_no_longer(make_client: MakeClient, over: int) -> None:
    body = b'{"seed": 1}'
    client = make_client(max_body_bytes=len(body) - over)
    response = client.post(SAMPLES, content=body, headers={"content-type": "application/json"})
    if over:
        check_problem(response, 413, "body-too-large")
        assert response.headers["connection"] == "close"
    else:
        assert response.status_code == 200
    assert metric(client, "ddaebm_rejected_total", reason="too_large") == over


@pytest.mark.parametrize("length", ["9" * 30, "1" + "0" * 19, "065", "65"])
def test_a_length_over_the_limit_is_refused_before_the_body_is_read(make_client: MakeClient, length: str) -> None:
    response = make_client(max_body_bytes=64).post(
        SAMPLES, content=b"{}", headers={"content-length": length, "content-type": "application/json"}
    )
    check_problem(response, 413, "body-too-large")


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "²"])
def test_a_length_that_is_no_number_does_not_matter(make_client: MakeClient, length: str) -> None:
    headers = {"content-length": length.encode("latin-1"), "content-type": "application/json"}
    client = make_client(max_body_bytes=64)
    assert client.post(SAMPLES, content=b"{}", headers=headers).status_code == 200  # type: ignore[arg-type]


async def stream(app: FastAPI, path: str, content_type: str, body: AsyncIterator[bytes]) -> list[httpx.Response]:
    """The answer to a body that does not say how long it is, and the metrics after it."""
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        answer = await client.post(path, content=body, headers={"content-type": content_type})
        return [answer, await client.get("/metrics")]


@pytest.mark.parametrize(
    ("path", "content_type"), [(SAMPLES, "application/json"), ("/v1/scores", "multipart/form-data; boundary=B")]
)
def test_a_body_without_a_length_is_read_no_further_than_the_limit(
    engine: FakeEngine, path: str, content_type: str
) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--B\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        for _ in range(100):
            sent += 1
            yield b"x" * 1000

    app = create_app(Settings(max_body_bytes=5000), engine)
    answer, metrics = asyncio.run(stream(app, path, content_type, body()))
    check_problem(answer, 413, "body-too-large")
    assert sent <= 6
    assert 'ddaebm_rejected_total{reason="too_large"} 1.0' in metrics.text


@pytest.mark.parametrize("chunks", [1, 10_000])
def test_a_body_that_stops_or_trickles_is_408_when_its_time_is_up(engine: FakeEngine, chunks: int) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(chunks):
            yield b" "
            sent += 1
            await asyncio.sleep(0.001)
        await asyncio.Event().wait()

    app = create_app(Settings(body_seconds=0.1), engine)
    answer, metrics = asyncio.run(asyncio.wait_for(stream(app, SAMPLES, "application/json", body()), PATIENCE))
    check_problem(answer, 408, "slow-body")
    assert answer.headers["connection"] == "close"
    assert sent < 200
    assert 'ddaebm_rejected_total{reason="slow_body"} 1.0' in metrics.text


@pytest.mark.parametrize("path", [SAMPLES, "/nowhere", "/v1/scores"])
def test_only_scores_take_a_large_body(client: TestClient, path: str) -> None:
    body = b'{"images": ["' + b"x" * 70_000 + b'"]}'
    response = client.post(path, content=body, headers={"content-type": "application/json"})
    if path == "/v1/scores":
        check_problem(response, 422)
    else:
        assert "65536 bytes" in check_problem(response, 413, "body-too-large")["detail"]


@pytest.mark.parametrize(
    "content_type", ["image/png", "application/json", "application/x-npy", "multipart/form-data; boundary=B"]
)
def test_a_client_that_leaves_while_it_sends_is_no_fault_of_the_server(
    client: TestClient, caplog: pytest.LogCaptureFixture, content_type: str
) -> None:
    messages = [{"type": "http.request", "body": b"--B\r\n", "more_body": True}, {"type": "http.disconnect"}]
    scope = {
        "type": "http", "method": "POST", "path": "/v1/scores", "raw_path": b"/v1/scores", "query_string": b"",
        "headers": [(b"content-type", content_type.encode())], "http_version": "1.1", "root_path": "",
    }  # fmt: skip

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        raise AssertionError("nobody is there")

    assert client.portal
    client.portal.call(client.app, scope, receive, send)
    assert metric(client, "ddaebm_http_requests_total", route="/v1/scores", status="499") == 1
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_fault_of_the_engine_is_a_500_without_its_trace_and_the_service_goes_on(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.fault = RuntimeError("secret of the engine")
    response = client.post(SAMPLES, json={"seed": 1})
    check_problem(response, 500, "internal")
    assert "secret" not in response.text
    assert client.post(SAMPLES, json={"seed": 1}).status_code == 200
    assert client.get("/readyz").status_code == 200
    assert metric(client, "ddaebm_http_requests_total", route=SAMPLES, method="POST", status="500") == 1


def test_requests_are_counted_by_route_template_method_and_status(client: TestClient) -> None:
    client.get("/v1/models/fake")
    client.get("/v1/models/nobody")
    route = "/v1/models/{name}"
    assert metric(client, "ddaebm_http_requests_total", route=route, method="GET", status="200") == 1
    assert metric(client, "ddaebm_http_requests_total", route=route, method="GET", status="404") == 1
    assert metric(client, "ddaebm_http_request_duration_seconds_count", route=route) == 2


def all_labels(client: TestClient) -> str:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return " ".join(value for f in families for sample in f.samples for value in sample.labels.values())


@pytest.mark.parametrize("path", ["/secret", "/v1/models/secret", "/v1/samples/secret", "/%73ecret?secret=secret"])
def test_no_label_holds_what_the_client_asked_for(client: TestClient, path: str) -> None:
    headers = {"x-request-id": "secret", "host": "secret", "accept": "secret"}
    assert client.get(path, headers=headers).status_code in (404, 405)
    assert "secret" not in all_labels(client)


def test_an_unknown_route_is_counted_as_unmatched(client: TestClient) -> None:
    check_problem(client.get("/nowhere"), 404)
    assert metric(client, "ddaebm_http_requests_total", route="unmatched", method="GET", status="404") == 1


@pytest.mark.parametrize("path", [SAMPLES, "/livez", "/nowhere", "/"])
def test_no_label_holds_a_method_that_the_client_made_up(client: TestClient, path: str) -> None:
    assert client.request("SECRET", path).status_code in (404, 405)
    assert "SECRET" not in all_labels(client)
