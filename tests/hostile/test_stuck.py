"""Clients that stall, decoders that hang, a drain that runs out of time, and a full disk."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack

import psutil
import pytest

from tests.hostile.conftest import Answer, Victim, Watch
from tests.hostile.corpus import FORM, JSON, SAMPLES, SCORES, form
from tests.hostile.files import HONEST, PHOTO, SCAN
from tests.stress.conftest import size
from tests.stress.load import PATIENCE

Serve = Callable[..., AbstractContextManager[Victim]]
DRAIN = 2  # seconds


def score(victim: Victim, image: bytes) -> Answer:
    return victim.ask("POST", SCORES, image, {"Content-Type": "image/png"})


def decoders(victim: Victim) -> list[psutil.Process]:
    return [child for child in victim.process.children() if child.status() != psutil.STATUS_ZOMBIE]


def start_decoders(victim: Victim) -> list[psutil.Process]:
    """Both of them, which images other than small PNGs and JPEGs do."""
    end = time.monotonic() + PATIENCE
    while len(decoders(victim)) < 2:
        assert time.monotonic() < end
        with ThreadPoolExecutor(8) as pool:
            assert {each.status for each in pool.map(score, [victim] * 8, [SCAN] * 8)} == {200}
    return decoders(victim)


def fill_decoders(victim: Victim, pool: ThreadPoolExecutor) -> "list[Future[Answer]]":
    """Ask for one image more than there are decoders, which hang; it waits once each of them has one."""
    asked = [pool.submit(score, victim, SCAN) for _ in range(3)]
    wait_until(lambda: victim.metric("ddaebm_decode_queue_pixels") > 0)
    return asked


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def check_end(victim: Victim, began: float, patience: float) -> None:
    """It ends with 0 within `patience` seconds, and so do its decoders."""
    family = decoders(victim)
    code = victim.service.process.wait(PATIENCE)
    assert code == 0, victim.service.log.read_text()
    assert time.monotonic() - began < patience
    _, alive = psutil.wait_procs(family, timeout=2)
    assert not alive
    assert "Traceback" not in victim.service.log.read_text()


def test_honest_scores_go_on_beside_two_stuck_decoders_and_sigterm_ends(serve: Serve) -> None:
    with serve(drain_seconds=DRAIN) as victim:
        for each in start_decoders(victim):
            os.kill(each.pid, signal.SIGSTOP)
        with ThreadPoolExecutor(4) as pool:
            hung = fill_decoders(victim, pool)
            for image, seconds in ((HONEST, size(2, 1)), (PHOTO, size(6, 2))):
                answer = score(victim, image)
                assert answer.status == 200, answer.body
                assert answer.seconds < seconds
            assert {each.result().status for each in hung} <= {200, 422}
        assert victim.metric("ddaebm_decoder_restarts_total") >= 2
        assert victim.ask("GET", "/readyz").status == 200
        for each in start_decoders(victim):
            os.kill(each.pid, signal.SIGSTOP)
        with ThreadPoolExecutor(3) as pool:
            fill_decoders(victim, pool)
            began = time.monotonic()
            victim.service.process.send_signal(signal.SIGTERM)
            check_end(victim, began, DRAIN + 2)


def test_decoders_that_are_killed_cost_no_answer(serve: Serve) -> None:
    with serve() as victim:
        for each in start_decoders(victim):
            each.kill()
        with ThreadPoolExecutor(8) as pool:
            assert {each.status for each in pool.map(score, [victim] * 8, [SCAN] * 8)} == {200}


def test_decoders_end_with_a_service_that_is_killed(serve: Serve) -> None:
    with serve() as victim:
        family = start_decoders(victim)
        victim.service.process.kill()
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive


def test_what_the_drain_cuts_off_is_told_when_to_come_back(serve: Serve) -> None:
    with serve("tests.stress.server", "0.02", drain_seconds=1) as victim, ThreadPoolExecutor(3) as pool:
        body, headers = json.dumps({"n": 300}).encode(), {"Content-Type": JSON}
        asked = [pool.submit(victim.ask, "POST", SAMPLES, body, headers) for _ in range(3)]
        wait_until(lambda: victim.metric("ddaebm_queue_images") > 300)  # so none of them is done within the drain
        began = time.monotonic()
        victim.service.process.send_signal(signal.SIGTERM)
        for answer in (each.result() for each in asked):
            assert answer.status in {200, 503}, answer.body
            if answer.status == 503:
                assert answer.headers["Content-Type"] == "application/problem+json"
                assert answer.headers["X-Request-ID"] == json.loads(answer.body)["request_id"]
                assert int(answer.headers["Retry-After"]) >= 1
        assert 503 in {each.result().status for each in asked}
        check_end(victim, began, 1 + 2 + 5)  # the batch under way is waited for, as before


def test_stalled_uploads_keep_small_requests_out_of_nothing(serve: Serve) -> None:
    with serve(body_seconds=5, max_bodies_bytes=2**22, max_body_bytes=2**20) as victim, ExitStack() as stack:
        refused = refused_beside_stalled_uploads(victim, stack)
        wait = int(refused.headers["Retry-After"])
        assert 1 < wait <= 5
        assert score(victim, HONEST).status == 200
        time.sleep(wait + 0.2)
        assert score(victim, HONEST + bytes(2**19)).status == 200


def refused_beside_stalled_uploads(victim: Victim, stack: ExitStack) -> Answer:
    """The answer to a large request while four uploads stall, which hold all memory for bodies for five seconds."""
    end = time.monotonic() + PATIENCE
    while True:  # on a busy machine the uploads may be over before they are all read
        for _ in range(4):
            stalled = stack.enter_context(socket.create_connection(victim.address))
            stalled.sendall(b"POST /v1/scores HTTP/1.1\r\nContent-Type: image/png\r\nContent-Length: 1048576\r\n\r\n")
            stalled.sendall(bytes(2**20 - 100))
        over = time.monotonic() + 5
        while time.monotonic() < over:
            answer = score(victim, HONEST + bytes(2**19))
            if answer.status == 429:
                return answer
            assert answer.status == 200, answer.body
        assert time.monotonic() < end, "never refused"


@pytest.mark.parametrize("folder", ["/proc", "/nowhere"])
def test_no_temporary_folder_is_needed(serve: Serve, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(name, folder)
    with serve() as victim:
        body = form(*[('; name="images"; filename="a.png"', HONEST + bytes(2**21))] * 3)
        answer = victim.ask("POST", SCORES, body, {"Content-Type": FORM})
        assert answer.status == 200, answer.body
        assert score(victim, SCAN).status == 200


def test_a_deadline_holds_whatever_waits_for_the_decoders(serve: Serve) -> None:
    with serve() as victim, Watch(victim) as watch:
        for each in start_decoders(victim):
            os.kill(each.pid, signal.SIGSTOP)
        headers = {"Content-Type": "image/tiff", "X-Request-Timeout": "0.3"}
        answer = victim.ask("POST", SCORES, SCAN, headers)
        assert answer.status == 504
        assert answer.seconds < 2
        assert watch.slowest < 2
        assert victim.metric('ddaebm_http_requests_total{method="POST",route="/v1/scores",status="504-client"}') == 1


def test_nobody_is_ready_without_decoders(serve: Serve) -> None:
    with serve() as victim:
        files, client = victim.process.rlimit(psutil.RLIMIT_NOFILE), victim.service.client
        assert client.get("/readyz").status_code == 200
        victim.process.rlimit(psutil.RLIMIT_NOFILE, (1, files[1]))
        for _ in range(2):
            answer = client.post(SCORES, content=SCAN, headers={"content-type": "image/tiff"})
            assert answer.status_code == 503, answer.text
        assert "no decoder process can be started" in client.get("/readyz").text
        assert client.post(SCORES, content=HONEST, headers={"content-type": "image/png"}).status_code == 200
        victim.process.rlimit(psutil.RLIMIT_NOFILE, files)
        assert score(victim, SCAN).status == 200
