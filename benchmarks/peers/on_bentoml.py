"""BentoML: adaptive batching in a service of its own, behind a gateway that speaks HTTP.

Two services, as "Handle multiple parameters" of BentoML's documentation (get-started/adaptive-batching) asks: a
batchable endpoint takes one parameter, so a gateway makes the seeds and the PNG. Batches are counted in rows.
`max_latency_ms` is the age at which requests are refused with 503 and stays at its default of 60 s; the wait for a
batch is learnt. No access log. `runner_connection`: by default the gateway closes its connections to the model every
100 requests, with those that are under way on them, and answers 500 (_bentoml_impl/client/proxy2.py of 1.4.40).
"""

import asyncio
from typing import Annotated, Any

import bentoml
import numpy as np
from bentoml.validators import ContentType

from benchmarks.peers.job import MAX_BATCH, WORKERS, Job, open_bundle, pixels_of, png_of, seeds_of, verdicts_of

BATCHING: dict[str, Any] = {"batchable": True, "max_batch_size": MAX_BATCH}
QUIET: dict[str, Any] = {"logging": {"access": {"enabled": False}}}


@bentoml.service(workers=WORKERS, runner_connection={"max_requests": 10**9, "max_age": 1e9}, **QUIET)
class Model:
    def __init__(self) -> None:
        self.job = Job()

    @bentoml.api(**BATCHING)
    def sample(self, seeds: np.ndarray) -> np.ndarray:
        return self.job.sample(seeds)

    @bentoml.api(**BATCHING)
    def score(self, images: np.ndarray) -> np.ndarray:
        return self.job.score(images)


@bentoml.service(**QUIET)
class Gateway:
    model = bentoml.depends(Model)

    def __init__(self) -> None:
        self.contract = open_bundle().contract

    @bentoml.api(route="/v1/samples")
    async def create_samples(self, n: int, seed: int) -> Annotated[bytes, ContentType("image/png")]:
        images = await self.model.to_async.sample(seeds_of({"n": n, "seed": seed}))
        return await asyncio.to_thread(png_of, images)

    @bentoml.api(route="/v1/scores")
    async def create_scores(self, images: list[str]) -> dict[str, Any]:
        pixels = await asyncio.to_thread(pixels_of, {"images": images}, self.contract)
        return verdicts_of(await self.model.to_async.score(pixels))
