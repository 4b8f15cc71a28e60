"""Ten times as much as the service can do: what it accepts it answers in time, and the rest it sends away honestly."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import psutil
import pytest

from ddaebm.service.settings import Settings
from tests.e2e.conftest import Running
from tests.stress.conftest import SHIPPED, STAND_IN, STRESS, client_of, count, mebibytes, process_of, running, size
from tests.stress.load import Answer, Client, closed_loop, open_loop

Record = Callable[[str, object], None]

IMAGES = 32  # of a request: few requests, so that the engine is what is slow and not the machine
QUEUE = count(128, Settings.model_fields["max_queue_images"].default)
DEADLINE = Settings.model_fields["deadline_seconds"].default


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("overload")
    with running(folder, *(SHIPPED if STRESS else (STAND_IN[0], "0.005")), max_queue_images=QUEUE) as started:
        yield started


def sampling(client: Client) -> Callable[[int], "asyncio.Task[Answer]"]:
    return lambda seed: asyncio.ensure_future(client.post("/v1/samples", {"n": IMAGES, "seed": seed}))


async def images_per_second(client: Client, seconds: float) -> float:
    """With as many clients as fill two batches."""
    end = asyncio.get_running_loop().time() + seconds
    answers = await closed_loop(sampling(client), 4, lambda: asyncio.get_running_loop().time() > end)
    assert {answer.status for answer in answers} == {200}
    first, last = min(a.began for a in answers), max(a.began + a.seconds for a in answers)
    return IMAGES * len(answers) / (last - first)


def test_ten_times_the_capacity(service: Running, record_property: Record) -> None:
    async def main() -> None:
        async with client_of(service) as client:
            await overload(client, process_of(service), record_property)

    asyncio.run(main())


async def overload(client: Client, process: psutil.Process, record: Record) -> None:
    capacity = await images_per_second(client, size(0.8, 10))
    seconds = size(3, 60)
    memory: list[float] = []

    async def watch_memory() -> None:
        while True:
            memory.append(mebibytes(process))
            await asyncio.sleep(seconds / 60)

    watching = asyncio.ensure_future(watch_memory())
    retries = Retries(client, longest=size(2, 10))
    answers = await open_loop(retries.ask, 10 * capacity / IMAGES, seconds)
    watching.cancel()
    windows = [await images_per_second(client, 0.5)]  # from when the last of the load is answered
    while windows[-1] < 0.7 * capacity and len(windows) < 4:
        windows.append(await images_per_second(client, 0.5))

    statuses = Counter(answer.status for answer in answers)
    accepted = [answer.seconds for answer in answers if answer.status == 200]
    refused = [answer.seconds for answer in answers if answer.status == 429]
    record("requests", len(answers))
    record("accepted", statuses[200])
    record("accepted_p99_s", round(float(np.percentile(accepted, 99)), 2))
    record("refused_p99_s", round(float(np.percentile(refused, 99)), 3))
    record("retries", len(retries.succeeded))
    record("accepted_on_retry", round(sum(retries.succeeded) / max(1, len(retries.succeeded)), 3))
    record("images_per_second_before", round(capacity))
    record("images_per_second_after", round(windows[-1]))
    record("full_speed_after_s", 0.5 * len(windows))
    record("rss_mib_end", round(memory[-1], 1))
    record("rss_growth_mib_second_half", round(growth := memory[-1] - memory[len(memory) // 2], 1))
    assert statuses.keys() == {200, 429}
    assert np.percentile(accepted, 99) < DEADLINE
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status == 429)
    assert sum(retries.succeeded) >= 0.95 * len(retries.succeeded)
    assert len(accepted) * IMAGES > 0.5 * capacity * seconds  # refusing leaves time for work
    assert windows[-1] > 0.7 * capacity
    assert growth < 16


@pytest.mark.parametrize("times", [2, count(4, 10)])
def test_who_waits_for_as_long_as_told_is_accepted(service: Running, times: int, record_property: Record) -> None:
    """A burst of `times` the queue."""

    async def main() -> tuple[list[bool], list[int]]:
        async with client_of(service) as client:
            return await burst(client, times * math.ceil(QUEUE / IMAGES))

    succeeded, waits = asyncio.run(main())
    record_property("refused_once", len(succeeded))
    record_property("accepted_on_retry", sum(succeeded) / max(1, len(succeeded)))
    record_property("longest_wait_s", max(waits, default=0))
    assert succeeded
    assert sum(succeeded) >= 0.95 * len(succeeded)


async def burst(client: Client, requests: int) -> tuple[list[bool], list[int]]:
    """Of those refused: whether the one retry was accepted, and the seconds that they were told to wait."""
    retries = Retries(client)
    await asyncio.gather(*map(retries.ask, range(requests)))
    return retries.succeeded, retries.waits


@dataclass
class Retries:
    """Clients that wait once for as long as they are told, up to `longest` seconds, and ask again by the same id."""

    client: Client
    longest: float = math.inf
    succeeded: list[bool] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)

    async def ask(self, seed: int) -> Answer:
        """The first answer."""

        def once() -> "asyncio.Task[Answer]":
            body = {"n": IMAGES, "seed": seed}
            return asyncio.ensure_future(self.client.post("/v1/samples", body, x_request_id=f"retry-{seed}"))

        first = await once()
        assert first.status in (200, 429)
        if first.status == 429:
            self.waits.append(int(first.headers["retry-after"]))
            if self.waits[-1] <= self.longest:
                await asyncio.sleep(self.waits[-1])
                second = await once()
                assert second.status in (200, 429)
                self.succeeded.append(second.status == 200)
        return first
