"""Every row of the corpus: the right status, no death, bounded memory, and /livez beside it."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.hostile.conftest import LIVE, MEMORY, Victim, Watch
from tests.hostile.corpus import CORPUS, Case
from tests.hostile.files import HONEST
from tests.hostile.floods import floods
from tests.stress.conftest import size

HONEST_SECONDS = size(5, 2)
FLOODS = list(floods())


@pytest.mark.parametrize("case", CORPUS + FLOODS, ids=[case.name for case in CORPUS + FLOODS])
def test_corpus(victim: Victim, case: Case, record_property: Callable[[str, object], None]) -> None:
    body = case.make()
    headers = {"Content-Type": case.content_type, **case.headers}
    with Watch(victim) as watch, ThreadPoolExecutor(case.connections) as pool:
        asked = [pool.submit(victim.ask, "POST", case.path, body, headers) for _ in range(case.connections)]
        if case.connections > 1:  # somebody else, meanwhile
            time.sleep(0.1)
            honest = victim.ask("POST", "/v1/scores", HONEST, {"Content-Type": "image/png"})
            assert honest.status in {200, 429}, honest.body  # 429: the queue of images is full, of right requests
            assert honest.seconds < HONEST_SECONDS
            record_property("honest", round(honest.seconds, 2))
        answers = [each.result() for each in asked]
    record_property("seconds", round(max(answer.seconds for answer in answers), 2))
    record_property("mebibytes", round(watch.memory))
    record_property("livez", round(watch.slowest, 3))
    for answer in answers:
        assert answer.status in case.wanted, answer.body[:500]
        assert case.words in answer.body.decode()
        if answer.status >= 400:
            problem = json.loads(answer.body)
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert len(problem.get("errors") or []) <= 10
            assert len(answer.body) < 16_384
        if answer.status == 429:
            assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert {answer.status for answer in answers} & (case.wanted - {429})  # some were not turned away
    assert victim.service.process.poll() is None
    assert watch.memory < MEMORY
    assert watch.slowest < LIVE
    assert victim.ask("GET", "/readyz").status == 200


def test_nothing_of_it_was_a_fault_of_the_service(victim: Victim) -> None:
    log = victim.service.log.read_text()
    assert "Traceback" not in log
    assert "Exception in ASGI" not in log
    metrics = victim.ask("GET", "/metrics").body.decode()
    assert 'status="500"' not in metrics
    assert 'status="502"' not in metrics
