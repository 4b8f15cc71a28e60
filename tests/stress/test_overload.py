"""Ten times the load that the service can take, and waves of callers that come back when they are told."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import psutil
import pytest

from ddaebm.service.settings import Settings
from tests.e2e.conftest import Running
from tests.stress.conftest import SHIPPED, STAND_IN, STRESS, client_of, count, mebibytes, process_of, running, size
from tests.stress.load import Answer, Client, closed_loop, open_loop

Record = Callable[[str, object], None]

IMAGES = 32  # of a request: few requests, so that the engine is what is slow and not the machine
QUEUE = count(512, Settings.model_fields["max_queue_images"].default)
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
    answers = await open_loop(sampling(client), 10 * capacity / IMAGES, seconds)
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
    record("longest_wait_s", longest := max(int(a.headers["retry-after"]) for a in answers if a.status == 429))
    record("images_per_second_before", round(capacity))
    record("images_per_second_after", round(windows[-1]))
    record("full_speed_after_s", 0.5 * len(windows))
    record("rss_mib_end", round(memory[-1], 1))
    record("rss_growth_mib_second_half", round(growth := memory[-1] - memory[len(memory) // 2], 1))
    assert statuses.keys() == {200, 429}
    assert np.percentile(accepted, 99) < DEADLINE
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status == 429)
    assert longest <= min(60, 1 + 3 * QUEUE / capacity)  # twice the time to empty the queue, as the service measures it
    assert len(accepted) * IMAGES > 0.5 * capacity * seconds  # refusing leaves time for work
    assert windows[-1] > 0.7 * capacity
    assert growth < 16


@pytest.mark.parametrize("queues", [2, count(3, 10)])
def test_a_wave_of_callers_that_come_back_when_told_is_soon_done(
    service: Running, queues: int, record_property: Record
) -> None:
    """All come at once. Those refused wait exactly as long as told, as often as it takes."""

    async def main() -> tuple[float, float, list[int]]:
        async with client_of(service) as client:
            capacity = await images_per_second(client, size(0.8, 5))
            began = asyncio.get_running_loop().time()
            tries = await asyncio.gather(*(until_accepted(client, seed) for seed in range(queues * QUEUE // IMAGES)))
            return capacity, asyncio.get_running_loop().time() - began, tries

    capacity, seconds, tries = asyncio.run(main())
    rounds, used = seconds * capacity / QUEUE, queues * QUEUE / seconds / capacity
    second = sum(count <= 2 for count in tries) / len(tries)
    record_property("seconds_to_empty_a_full_queue", round(QUEUE / capacity, 2))
    record_property("rounds", round(rounds, 2))
    record_property("share_of_capacity_used", round(used, 2))
    record_property("accepted_by_the_second_try", round(second, 3))
    record_property("most_tries", max(tries))
    assert rounds <= queues + 2
    assert used >= 0.7
    if queues == 2:  # those refused fit into the queue together
        assert second >= 0.95


async def until_accepted(client: Client, seed: int) -> int:
    """The number of tries."""
    for tries in itertools.count(1):
        answer = await client.post("/v1/samples", {"n": IMAGES, "seed": seed})
        assert answer.status in (200, 429)
        if answer.status == 200:
            return tries
        await asyncio.sleep(int(answer.headers["retry-after"]))
    raise AssertionError
