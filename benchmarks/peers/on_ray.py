"""Ray Serve: a replica a worker, `@serve.batch` for each operation.

Settings from "Dynamic Request Batching" of Ray's documentation (serve/advanced-guides/dyn-req-batch): a batch size that
is a power of 2, counted in images by `batch_size_fn`, the default wait of 10 ms; and `max_ongoing_requests` at least
`max_batch_size`, as Ray's warning asks. No dashboard and no access log. The graph runs on a thread, so that the
replica's loop can take requests meanwhile.
"""

import asyncio
import signal
import sys
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from benchmarks.peers.job import (
    MAX_BATCH,
    WAIT_SECONDS,
    WORKERS,
    Array,
    Job,
    merged,
    pixels_of,
    png_of,
    seeds_of,
    verdicts_of,
)

BATCHING: dict[str, Any] = {
    "max_batch_size": MAX_BATCH,
    "batch_wait_timeout_s": WAIT_SECONDS,
    "batch_size_fn": lambda items: sum(map(len, items)),
}


@serve.deployment(num_replicas=WORKERS, max_ongoing_requests=1024)
class Model:
    def __init__(self) -> None:
        self.job = Job()

    @serve.batch(**BATCHING)
    async def sample(self, seeds: list[Array]) -> list[Array]:
        return await asyncio.to_thread(merged, self.job.sample, seeds)

    @serve.batch(**BATCHING)
    async def score(self, images: list[Array]) -> list[Array]:
        return await asyncio.to_thread(merged, self.job.score, images)

    async def __call__(self, request: Request) -> Response:
        body = await request.json()
        if request.url.path == "/v1/samples":
            images: Any = await self.sample(seeds_of(body))
            return Response(await asyncio.to_thread(png_of, images), media_type="image/png")
        pixels: Any = await asyncio.to_thread(pixels_of, body, self.job.contract)
        rows: Any = await self.score(pixels)
        return JSONResponse(verdicts_of(rows))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ray.init(include_dashboard=False, log_to_driver=False)
    quiet = LoggingConfig(enable_access_log=False)
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=int(sys.argv[1])), logging_config=quiet)
    deployment: Any = Model  # the decorator turns the class into a deployment
    serve.run(deployment.options(logging_config=quiet).bind(), blocking=True)
