"""The inference thread killed under load: unready until another one runs, once; the second death ends the process."""

import asyncio
import subprocess
import time
from collections import Counter
from collections.abc import Callable

from tests.stress.conftest import STAND_IN, Start, client_of, count, size
from tests.stress.load import PATIENCE, Answer, Client, until
from tests.stress.server import POISON

Record = Callable[[str, object], None]

CLIENTS = count(8, 64)


def test_the_inference_thread_is_killed_twice(start: Start, record_property: Record) -> None:
    with start(*STAND_IN) as service:

        async def main() -> None:
            async with client_of(service) as client, client_of(service) as probe:
                await kill_twice(client, probe, service.process, record_property)

        asyncio.run(main())


async def kill_twice(client: Client, probe: Client, process: "subprocess.Popen[bytes]", record: Record) -> None:
    answers: list[Answer] = []
    load = [asyncio.ensure_future(ask_until_closed(client, answers)) for _ in range(CLIENTS)]

    async def ready() -> bool:
        return (await probe.get("/readyz")).status == 200

    async def unready() -> bool:
        return not await ready()

    async def busy() -> bool:
        return len(answers) > CLIENTS

    await until(busy)
    assert (await kill(probe)).status == 503
    await until(unready, 5)
    unready_seconds = await until(ready)
    assert (await probe.get("/livez")).status == 200
    assert await probe.metric("ddaebm_inference_restarts_total") == 1
    before = len(answers)
    await asyncio.sleep(size(0.3, 10))
    after = answers[before:]
    restarts = await probe.metric("ddaebm_inference_restarts_total")

    began = time.perf_counter()  # what was sent before is answered
    assert (await kill(probe)).status == 503
    code = await asyncio.to_thread(process.wait, PATIENCE)
    seconds_to_exit = time.perf_counter() - began
    unanswered = await asyncio.gather(*load)
    statuses = Counter(answer.status for answer in answers)
    record("answers", len(answers))
    record("of_those_503", statuses[503])
    record("unready_s", round(unready_seconds, 2))
    record("restarts", restarts)
    record("second_death_to_exit_s", round(seconds_to_exit, 2))
    record("exit_code", code)
    assert code == 1
    assert restarts == 1
    assert min(unanswered) > began
    assert {answer.status for answer in after} == {200}
    assert statuses.keys() == {200, 503}
    assert all("retry-after" in answer.headers for answer in answers if answer.status == 503)


async def kill(client: Client) -> Answer:
    return await client.post("/v1/samples", {"seeds": [POISON]})


async def ask_until_closed(client: Client, answers: list[Answer]) -> float:
    """One client, who is in no hurry after a 503; when its last request was sent, which was not answered."""
    while True:
        sent = time.perf_counter()
        try:
            answers.append(await client.post("/v1/samples", {"n": 4}))
        except (OSError, EOFError):  # the process ends
            return sent
        if answers[-1].status == 503:
            await asyncio.sleep(0.05)
