"""Plain FastAPI without batching: a request is one call of the graph, on FastAPI's own thread pool (40 threads).

Sessions of ONNX Runtime may be called by several threads at once, so that no lock is needed:
https://onnxruntime.ai/docs/api/python/ (InferenceSession.run). Routes that are plain functions run on the pool:
https://fastapi.tiangolo.com/async/.
"""

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel

from benchmarks.peers.job import Job, pixels_of, png_of, seeds_of, verdicts_of

app = FastAPI()
job = Job()


class Sampling(BaseModel):
    n: int
    seed: int


class Scoring(BaseModel):
    images: list[str]


@app.post("/v1/samples")
def create_samples(body: Sampling) -> Response:
    return Response(png_of(job.sample(seeds_of(body.model_dump()))), media_type="image/png")


@app.post("/v1/scores")
def create_scores(body: Scoring) -> dict[str, Any]:
    return verdicts_of(job.score(pixels_of(body.model_dump(), job.contract)))


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
