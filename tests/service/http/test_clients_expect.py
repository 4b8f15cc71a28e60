"""The server does what RFC 9110 and common clients expect: upgrades, HEAD, HTTP/1.0, half-closed connections."""

import asyncio
import gzip
import json
import socket
import zlib
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from ddaebm.service.app import create_app
from ddaebm.service.http.bodies import Bodies, Body
from ddaebm.service.http.errors import Problem
from ddaebm.service.settings import Settings
from tests.service.conftest import FakeEngine, MakeClient, check_problem, files, metric, png, wait_until
from tests.service.http import test_protocol
from tests.service.http.test_protocol import GET, Start, sample
from tests.service.routes.test_v2 import SAMPLER, SEEDS

start = test_protocol.start  # the fixture

UPGRADES = {
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    "h2c of Java": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n",
    "lower case": b"connection: keep-alive, upgrade\r\nupgrade: TLS/1.2\r\n",
}


def post(body: bytes, more: bytes = b"", chunked: bool = False) -> bytes:
    head = b"POST /v1/samples HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n" + more
    if not chunked:
        return head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    half = len(body) // 2
    pieces = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (body[:half], body[half:]))
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("name", UPGRADES)
def test_an_offered_upgrade_is_ignored_and_the_body_is_a_body(
    start: Start, engine: FakeEngine, name: str, chunked: bool
) -> None:
    client = start().client()
    body = b'{"n": 2}' + b" " * 100
    request = post(body, UPGRADES[name], chunked)
    for piece in (request[:-50], request[-50:-3], request[-3:] + GET):
        client.send(piece)
    answers = client.answers(2)
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert b'"status":"live"' in answers
    assert engine.calls == [("sample", 2)]


@pytest.mark.parametrize("name", UPGRADES)
def test_a_body_beside_an_upgrade_is_not_a_second_request(start: Start, name: str) -> None:
    live = start()
    closes = UPGRADES[name] + b"Connection: close\r\n"
    answer = live.client().send(post(GET, closes)).rest()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_upgrades_may_be_pipelined_and_have_no_body(start: Start) -> None:
    request = GET[:-2] + UPGRADES["websocket"] + b"\r\n"
    assert start().client().send(request * 4 + GET).answers(5).count(b"HTTP/1.1 200 OK") == 5


def test_only_http_1_1_is_told_to_continue(start: Start) -> None:
    live = start()
    expect = post(b"{}", b"Expect: 100-continue\r\n")
    assert b"100 Continue" in live.client().send(expect).answers(2)
    old = live.client().send(expect.replace(b"HTTP/1.1", b"HTTP/1.0")).rest()
    assert b"100 Continue" not in old
    assert b" 200 OK" in old


@pytest.mark.parametrize("request_of", [lambda: GET, lambda: GET.replace(b"livez", b"metrics"), sample])
def test_a_half_closed_connection_is_not_answered_whatever_the_route(start: Start, request_of: Any) -> None:
    live = start()
    for _ in range(20):
        client = live.client()
        client.send(request_of())
        client.socket.shutdown(socket.SHUT_WR)
        answer = client.rest()
        # The system may be slow to tell; then the whole answer was sent before.
        assert answer == b"" or answer.startswith(b"HTTP/1.1 200 OK")
    wait_until(lambda: live.metric("ddaebm_http_connections") == 0)


def test_an_answer_is_held_back_once_the_client_has_closed_its_side(start: Start, engine: FakeEngine) -> None:
    live = start()
    with engine.blocked():
        client = live.client().send(sample())
        assert engine.entered.wait(5)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.rest() == b""


@pytest.mark.parametrize(
    ("path", "status"), [("/livez", 200), ("/readyz", 200), ("/health", 200), ("/metrics", 200), ("/", 307)]
)
def test_head_is_as_get_without_a_body(client: TestClient, path: str, status: int) -> None:
    answer = client.head(path, follow_redirects=False)
    assert (answer.status_code, answer.content) == (status, b"")
    assert answer.headers["content-type" if status == 200 else "location"]


def test_json_may_begin_with_a_byte_order_mark(client: TestClient) -> None:
    import base64

    bom, headers = b"\xef\xbb\xbf", {"content-type": "application/json"}
    image = json.dumps({"images": [base64.b64encode(png()).decode()]}).encode()
    tensors = json.dumps({"inputs": [SEEDS]}).encode()
    for path, body in (("/v1/samples", b'{"n": 1}'), ("/v1/scores", image), (f"{SAMPLER}/infer", tensors)):
        assert client.post(path, content=bom + body, headers=headers).status_code == 200, path


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "x-gzip", "identity", "GZIP"])
def test_scores_take_compressed_bodies(client: TestClient, encoding: str) -> None:
    body = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding.lower().removeprefix("x-"), bytes)(png(9))
    answer = client.post(
        "/v1/scores", content=body, headers={"content-type": "image/png", "content-encoding": encoding}
    )
    assert answer.json()["results"][0]["ood_score"] == 9


REFUSED = {
    "gzip of much": ("/v1/scores", gzip.compress(bytes(70 * 2**20)), "gzip", 413),
    "deflate of much": ("/v1/scores", zlib.compress(bytes(70 * 2**20)), "deflate", 413),
    "truncated gzip": ("/v1/scores", gzip.compress(png())[:-9], "gzip", 400),
    "truncated deflate": ("/v1/scores", zlib.compress(png())[:-5], "deflate", 400),
    "no gzip": ("/v1/scores", png(), "gzip", 400),
    "brotli": ("/v1/scores", png(), "br", 415),
    "twice": ("/v1/scores", png(), "gzip, gzip", 415),
    "samples": ("/v1/samples", gzip.compress(b"{}"), "gzip", 415),
}


@pytest.mark.parametrize(("path", "content", "encoding", "status"), REFUSED.values(), ids=REFUSED)
def test_other_encodings_are_refused(client: TestClient, path: str, content: bytes, encoding: str, status: int) -> None:
    media_type = "application/json" if "samples" in path else "image/png"
    answer = client.post(path, content=content, headers={"content-type": media_type, "content-encoding": encoding})
    check_problem(answer, status)


def test_inflated_bytes_count_beside_those_of_other_requests(make_client: MakeClient) -> None:
    client = make_client(max_body_bytes=2**20, max_bodies_bytes=2**20)
    headers = {"content-type": "image/png", "content-encoding": "gzip"}
    for size, status in ((2**20, 200), (2**20 + 1, 413), (2**20, 200)):
        body = gzip.compress(png() + bytes(size - len(png())))
        assert client.post("/v1/scores", content=body, headers=headers).status_code == status
    body = Body(Bodies(2**20, seconds=30, held=2**20))
    with pytest.raises(Problem, match="other request bodies are in memory"):
        body.add(2**20)


def test_a_preflight_has_a_request_id(make_client: MakeClient) -> None:
    client = make_client(cors_origins="https://a.example")
    headers = {"origin": "https://a.example", "access-control-request-method": "POST", "x-request-id": "mine"}
    answer = client.options("/v1/scores", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["x-content-type-options"] == "nosniff"
    del headers["x-request-id"]
    assert client.options("/v1/scores", headers=headers).headers["x-request-id"]


def test_a_deadline_of_the_client_s_own_is_counted_apart(client: TestClient, engine: FakeEngine) -> None:
    with engine.blocked():
        answer = client.post("/v1/samples", json={"n": 1}, headers={"x-request-timeout": "0.01"})
        check_problem(answer, 504, "deadline")
    assert metric(client, "ddaebm_http_requests_total", route="/v1/samples", method="POST", status="504-client") == 1
    assert metric(client, "ddaebm_rejected_total", reason="client_deadline") == 1


def test_what_the_end_of_the_drain_cuts_off_is_a_problem(engine: FakeEngine) -> None:
    app = create_app(Settings(), engine)

    async def cut_off() -> httpx.Response:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
        ):
            with engine.blocked():
                asked = asyncio.create_task(client.post("/v1/samples", json={"n": 1}))
                await asyncio.to_thread(engine.entered.wait, 5)
                asked.cancel()  # uvicorn does this to the app's task
                return await asked

    answer = asyncio.run(cut_off())
    assert check_problem(answer, 503, "draining")["request_id"]
    assert answer.headers["retry-after"] == "1"


def test_scores_of_image_files_name_the_file_by_either_parameter(client: TestClient) -> None:
    body = (b"preamble\r\n--B\r\nContent-Disposition: form-data; name=\"images\"; filename*=utf-8''a%20b.png\r\n\r\n"
            + png(4) + b"\r\n--B--\r\nepilogue")  # fmt: skip
    answer = client.post("/v1/scores", content=body, headers={"content-type": "multipart/form-data; boundary=B"})
    assert [(each["name"], each["ood_score"]) for each in answer.json()["results"]] == [("a b.png", 4)]
    assert client.post("/v1/scores", files=files(png(5))).json()["results"][0]["ood_score"] == 5
