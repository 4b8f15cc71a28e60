"""SIGTERM under load: what was accepted is answered whole, what comes later is refused, and the exit code is 0."""

import asyncio
import signal
import subprocess
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.stress.conftest import SHIPPED, STAND_IN, STRESS, Start, client_of, count, size
from tests.stress.load import PATIENCE, Answer, Client

Record = Callable[[str, object], None]

CLIENTS = count(24, 64)
IMAGES = 16


class Request(NamedTuple):
    """Times are perf_counter seconds."""

    sent: float
    ended: float
    outcome: Answer | type[Exception]  # a torn answer is raised


@pytest.mark.parametrize("signals", [1, 2])
def test_sigterm(start: Start, signals: int, record_property: Record) -> None:
    with start(*(SHIPPED if STRESS else STAND_IN)) as service:

        async def main() -> None:
            async with client_of(service) as client, client_of(service) as probe:
                await end_under_load(client, probe, service.process, signals, record_property)

        asyncio.run(main())
        assert "Traceback" not in service.log.read_text()


async def end_under_load(
    client: Client, probe: Client, process: "subprocess.Popen[bytes]", signals: int, record: Record
) -> None:
    load = [asyncio.ensure_future(ask_until_refused(client)) for _ in range(CLIENTS)]
    await asyncio.sleep(size(0.4, 10))
    marked = time.perf_counter()
    await probe.get("/livez")  # it comes behind them: when it is answered, all sent before `marked` have been read
    began = time.perf_counter()
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.15)
    code = await asyncio.to_thread(process.wait, PATIENCE)
    seconds = time.perf_counter() - began
    requests = [request for client_requests in await asyncio.gather(*load) for request in client_requests]

    accepted = [request for request in requests if request.sent < marked and request.ended > began]
    answered = [request for request in accepted if isinstance(request.outcome, Answer)]
    refused = [request for request in requests if request.outcome is ConnectionRefusedError]
    record("requests", len(requests))
    record("in_flight_at_the_signal", len(accepted))
    record("of_those_answered_whole", len(answered))
    record("refused_connections", len(refused))
    record("seconds_to_exit", round(seconds, 2))
    assert code == 0
    assert accepted
    assert len(answered) == len(accepted)
    for request in requests:
        if isinstance(request.outcome, Answer):
            assert request.outcome.status == 200, request.outcome.body
            assert len(request.outcome.json()["images"]) == IMAGES
    assert min(request.ended for request in refused) < max(request.ended for request in answered)


async def ask_until_refused(client: Client) -> list[Request]:
    requests: list[Request] = []
    while not requests or requests[-1].outcome is not ConnectionRefusedError:
        sent = time.perf_counter()
        try:
            outcome: Answer | type[Exception] = await client.post("/v1/samples", {"n": IMAGES})
        except (OSError, EOFError) as error:  # sent on a connection that was being closed
            outcome = type(error)
        requests.append(Request(sent, time.perf_counter(), outcome))
    return requests
