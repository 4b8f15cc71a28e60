"""Clients that leave while they wait: what nobody waits for is not computed, and nothing of it stays behind."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ddaebm.service.settings import Settings
from tests.stress.conftest import STAND_IN, client_of, count, process_of, running
from tests.stress.load import Client, hang_up, request_bytes, until
from tests.stress.server import HOLD

Record = Callable[[str, object], None]

LEAVERS = count(50, 1000)
STAYERS = 4
IMAGES = count(8, 4)  # of a request: as many requests as still fit the queue
BATCH = Settings.model_fields["max_batch"].default


@dataclass
class Outcome:
    """Images unless it says otherwise."""

    asked: int
    computed: int
    answered: list[int]  # a client that stayed
    gone: float  # requests that ended because the client had left
    queued_after: float  # all was answered
    descriptors: tuple[int, int]  # before and after
    dropped: float  # by the service's own count


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    folder = tmp_path_factory.mktemp("leave")
    with running(folder, STAND_IN[0], "0") as service:

        async def main() -> Outcome:
            async with client_of(service) as client:
                return await leave(client, process_of(service), folder / HOLD)

        yield asyncio.run(main())


async def leave(client: Client, process: psutil.Process, hold: Path) -> Outcome:
    """Nothing is computed before the leavers have left but for the batch that they fill first."""
    await client.get("/metrics")
    descriptors = process.num_fds()
    asked = (LEAVERS + STAYERS) * IMAGES

    async def queued() -> float:
        return await client.metric("ddaebm_queue_images")

    async def all_wait() -> bool:
        return await queued() >= asked - BATCH

    async def all_have_gone() -> bool:
        return await gone() == LEAVERS

    async def gone() -> float:
        return await client.metric("ddaebm_http_requests_total", status="499")

    async def stay() -> int:
        async with Client(client.host, client.port) as stayer:
            answer = await stayer.post("/v1/samples", {"n": IMAGES})
        assert answer.status == 200
        return len(answer.json()["images"])

    hold.touch()
    writers = [await ask_without_waiting(client) for _ in range(LEAVERS)]
    stayers = [asyncio.ensure_future(stay()) for _ in range(STAYERS)]
    await until(all_wait)
    for writer in writers[::2]:  # one half is cut off, the other hangs up
        writer.transport.abort()
    for writer in writers:
        await hang_up(writer)
    await until(all_have_gone)
    hold.unlink()
    answered = list(await asyncio.gather(*stayers))

    async def closed() -> bool:
        return process.num_fds() <= descriptors

    with suppress(TimeoutError):  # a test says so
        await until(closed, 10)
    dropped = await client.metric("ddaebm_images_dropped_total", reason="client-gone")
    computed = round(await client.metric("ddaebm_batch_images_sum"))
    return Outcome(asked, computed, answered, await gone(), await queued(), (descriptors, process.num_fds()), dropped)


async def ask_without_waiting(client: Client) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection(client.host, client.port)
    body = json.dumps({"n": IMAGES}).encode()
    writer.write(request_bytes("POST", "/v1/samples", body, content_type="application/json"))
    return writer


def test_what_nobody_waits_for_is_not_computed(outcome: Outcome, record_property: Record) -> None:
    record_property("clients", LEAVERS)
    record_property("images_asked", outcome.asked)
    record_property("computed", outcome.computed)
    assert outcome.gone == LEAVERS
    assert outcome.answered == [IMAGES] * STAYERS
    assert outcome.computed <= BATCH + STAYERS * IMAGES
    assert outcome.queued_after == 0


def test_their_file_descriptors_are_closed(outcome: Outcome, record_property: Record) -> None:
    before, after = outcome.descriptors
    record_property("before", before)
    record_property("after", after)
    assert after <= before


def test_a_counter_says_how_many_images_were_not_computed(outcome: Outcome, record_property: Record) -> None:
    record_property("dropped", outcome.dropped)
    assert outcome.dropped == outcome.asked - outcome.computed
