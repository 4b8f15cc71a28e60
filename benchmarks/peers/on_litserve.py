"""LitServe: two endpoints with a worker process each, batched.

Settings from the docstrings of LitAPI and LitServer (0.2.19): `max_batch_size` and `batch_timeout` turn batching on, a
timeout of 0 would poll without a pause; `fast_queue` is for over 100 requests a second; `generate_client_file` may be
left out in production. `workers_per_device` is of each endpoint. It counts requests, not images: `Job` cuts what is
merged into calls of 64.
"""

import sys
from typing import Any

import litserve
from fastapi import Response

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


class Sampler(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.job = Job()

    def decode_request(self, request: dict[str, Any]) -> Array:
        return seeds_of(request)

    def batch(self, inputs: list[Array]) -> list[Array]:
        return inputs  # of different lengths: not to be stacked

    def predict(self, x: list[Array]) -> list[Array]:
        return merged(self.job.sample, x)

    def encode_response(self, output: Array) -> Response | dict[str, Any]:
        return Response(png_of(output), media_type="image/png")


class Scorer(Sampler):
    def decode_request(self, request: dict[str, Any]) -> Array:
        return pixels_of(request, self.job.contract)

    def predict(self, x: list[Array]) -> list[Array]:
        return merged(self.job.score, x)

    def encode_response(self, output: Array) -> dict[str, Any]:
        return verdicts_of(output)


if __name__ == "__main__":
    batching = {"max_batch_size": MAX_BATCH, "batch_timeout": WAIT_SECONDS}
    apis = [Sampler(api_path="/v1/samples", **batching), Scorer(api_path="/v1/scores", **batching)]
    server = litserve.LitServer(apis, accelerator="cpu", workers_per_device=WORKERS, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
