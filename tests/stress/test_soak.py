"""Everything at once for a long time, reloads among it: no fault, and neither memory nor anything else that grows."""

import asyncio
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest

from ddaebm.model.bundle import MANIFEST, find_bundle
from ddaebm.model.files import encode_npy, write_file
from ddaebm.service.settings import Settings
from tests.stress.bodies import IMAGES, as_form, as_json
from tests.stress.conftest import SHIPPED, client_of, mebibytes, process_of, running, size
from tests.stress.load import Client, hang_up, request_bytes, until

Record = Callable[[str, object], None]

SECONDS = size(10, 20 * 60)
CLIENTS = 6
WARM_UP = 0.25  # share of the time
SLOPE = max(1.0, size(200, 8) / (SECONDS / 60))  # MiB a minute; the second is what comes and goes with a moment's work
# Of asyncio, and those that decode: they are started as they are needed.
EXECUTOR_THREADS = (os.cpu_count() or 1) + 5 + int(Settings.model_fields["decode_threads"].default)
DECODERS = int(Settings.model_fields["decode_processes"].default)  # a connection to each, which starts when needed


class Kind(NamedTuple):
    """A request, and the status that it is answered with."""

    path: str
    body: bytes | None  # None: GET
    headers: dict[str, str]
    status: int = 200


class Moment(NamedTuple):
    minutes: float
    mebibytes: float
    threads: int


def samples(status: int = 200, accept: str = "*/*", path: str = "/v1/samples", **body: Any) -> Kind:
    return Kind(path, json.dumps(body).encode(), {"content_type": "application/json", "accept": accept}, status)


def scores(content: bytes, content_type: str, status: int = 200, query: str = "") -> Kind:
    return Kind("/v1/scores" + query, content, {"content_type": content_type}, status)


SEEDS = {"name": "seeds", "datatype": "INT64", "shape": [2], "data": [1, 2]}
ARRAY = encode_npy(np.zeros((3, 28, 28), np.uint8))
KINDS = [
    samples(n=4), samples(n=1), samples(n=40, accept="image/png"), samples(n=3, accept="application/zip"),
    samples(n=3, accept="application/x-npy"), samples(n=2, include=["scores"]), samples(n=1, best_of=4),
    samples(path="/v2/models/fashion-mnist-sampler/infer", inputs=[SEEDS]),
    Kind("/v1/samples/7.png", None, {}), Kind("/v1/models", None, {}), Kind("/metrics", None, {}),
    *(scores(image, "image/png") for image in IMAGES[::4]),
    scores(as_form(IMAGES[1]).content, as_form(IMAGES[1]).content_type),
    scores(as_json(IMAGES[2]).content, "application/json", query="?fdr=0.2"),
    scores(ARRAY, "application/x-npy", query="?heatmap=true"), scores(IMAGES[0], "image/png", query="?heatmap=true"),
    samples(422, n=0), samples(422, n=4, seeds=[1]), samples(404, model="none"), samples(406, accept="text/html"),
    scores(b"{", "application/json", 400), scores(b"x", "text/plain", 415), scores(IMAGES[0][:60], "image/png", 422),
    scores(ARRAY[:-1], "application/x-npy", 422), scores(IMAGES[0], "image/png", 422, "?alpha=1e-9"),
    Kind("/nowhere", None, {}, 404),
]  # fmt: skip


@dataclass
class Soak:
    """`descriptors` and `threads` are those at the start, while nothing is asked, and then as their names say."""

    statuses: Counter[str]
    reloads: int  # asked for
    outcomes: tuple[float, float]  # reloads done, and failed
    moments: list[Moment]
    descriptors: tuple[int, int]  # start, end
    threads: tuple[int, int]  # start, most
    log: str


@pytest.fixture(scope="module")
def soak(tmp_path_factory: pytest.TempPathFactory) -> Soak:
    folder = tmp_path_factory.mktemp("soak")
    bundle = Path(shutil.copytree(find_bundle("fashion-mnist"), folder / "bundle"))
    with running(folder, *SHIPPED, "--bundle", str(bundle)) as service:

        async def main() -> Soak:
            async with client_of(service) as client:
                return await run_soak(client, process_of(service), bundle)

        found = asyncio.run(main())
        found.log = service.log.read_text()
    return found


async def run_soak(client: Client, process: psutil.Process, bundle: Path) -> Soak:
    await client.get("/readyz")
    descriptors, threads = process.num_fds(), process.num_threads()
    statuses: Counter[str] = Counter()
    moments: list[Moment] = []
    reloads = 0
    began = time.perf_counter()

    def done() -> bool:
        return time.perf_counter() - began > SECONDS

    async def reload_now_and_then() -> None:
        nonlocal reloads
        while not done():
            await asyncio.sleep(size(3, 30))
            reloads += 1
            change(bundle, reloads)
            process.send_signal(signal.SIGHUP)

    async def watch() -> None:
        while not done():
            minutes = (time.perf_counter() - began) / 60
            moments.append(Moment(minutes, mebibytes(process), process.num_threads()))
            await asyncio.sleep(size(0.1, 2))

    async def reloads_done() -> float:
        return await client.metric("ddaebm_reloads_total")

    async def closed() -> bool:
        return process.num_fds() <= descriptors + DECODERS

    await asyncio.gather(
        reload_now_and_then(), watch(), *(mixed_traffic(client, i, statuses, done) for i in range(CLIENTS))
    )
    await until(reloads_done)
    outcomes = [await client.metric("ddaebm_reloads_total", outcome=outcome) for outcome in ("ok", "failed")]
    await client.close()
    await client.get("/readyz")
    with suppress(TimeoutError):  # a test says so
        await until(closed, 10)
    most_threads = max(moment.threads for moment in moments)
    return Soak(
        statuses, reloads, (outcomes[0], outcomes[1]), moments,
        (descriptors, process.num_fds()), (threads, most_threads), "",
    )  # fmt: skip


def test_each_request_gets_the_status_that_it_should(soak: Soak, record_property: Record) -> None:
    record_property("requests", soak.statuses.total())
    record_property("outcomes", dict(sorted(soak.statuses.items())))
    record_property("reloads", soak.reloads)
    record_property("reloads_done_and_failed", soak.outcomes)
    assert not [key for key in soak.statuses if "instead" in key or key.startswith("5")], soak.log
    assert soak.statuses["200"]
    assert soak.outcomes[0] >= 1
    assert soak.outcomes[1] == 0
    assert "Traceback" not in soak.log


def test_file_descriptors_and_threads_do_not_grow(soak: Soak, record_property: Record) -> None:
    record_property("file_descriptors", soak.descriptors)
    record_property("threads", soak.threads)
    assert soak.descriptors[1] <= soak.descriptors[0] + DECODERS
    assert soak.threads[1] <= soak.threads[0] + EXECUTOR_THREADS


def test_memory_does_not_grow(soak: Soak, record_property: Record) -> None:
    warm = [moment for moment in soak.moments if moment.minutes > WARM_UP * SECONDS / 60]
    slope = float(np.polyfit([moment.minutes for moment in warm], [moment.mebibytes for moment in warm], 1)[0])
    record_property("rss_mib_warm", round(warm[0].mebibytes, 1))
    record_property("rss_mib_end", round(warm[-1].mebibytes, 1))
    record_property("rss_slope_mib_per_min", round(slope, 2))
    assert slope < SLOPE


async def mixed_traffic(client: Client, number: int, statuses: Counter[str], done: Callable[[], bool]) -> None:
    """One client, who now and then leaves before the answer."""
    chance = random.Random(number)
    while not done():
        kind = chance.choice(KINDS)
        method = "GET" if kind.body is None else "POST"
        if chance.random() < 0.1:
            _, writer = await asyncio.open_connection(client.host, client.port)
            writer.write(request_bytes(method, kind.path, kind.body or b"", **kind.headers))
            await asyncio.sleep(chance.uniform(0, 0.05))
            await hang_up(writer)
            statuses["left"] += 1
            continue
        answer = await client.ask(method, kind.path, kind.body or b"", **kind.headers)
        right = answer.status == kind.status
        statuses[str(answer.status) if right else f"{answer.status} instead of {kind.status} for {kind.path}"] += 1


def change(bundle: Path, number: int) -> None:
    """Another digest, so that a reload loads everything anew."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["training"]["note"] = f"changed {number} times"
    write_file(bundle / MANIFEST, json.dumps(manifest).encode())
