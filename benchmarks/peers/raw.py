"""The ceiling: the graphs called in a loop without a server, as JSON. Noise is included, decoding and encoding are not.

Images a second of sampling and scoring, for each number of rows in a call and of threads that call at a time.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import numpy as np

from benchmarks.peers.job import MAX_BATCH, WORKERS, Array, Job
from ddaebm.model.noise import image_seeds

BATCHES, CALLERS = (1, 8, 16, 32, MAX_BATCH), sorted({1, WORKERS})


def rate(job: Job, operation: str, batch: int, callers: int, seconds: float) -> float:
    """Images a second."""
    seeds = count()
    images = job.sample(image_seeds(0, batch))
    began = time.perf_counter()

    def call_in_a_loop(_: int) -> tuple[int, float]:
        calls = 0
        while not calls or time.perf_counter() < began + seconds:
            rows: Array = image_seeds(next(seeds), batch) if operation == "sample" else images
            getattr(job, operation)(rows)
            calls += 1
        return calls, time.perf_counter()

    with ThreadPoolExecutor(callers) as pool:
        calls, ends = np.transpose(list(pool.map(call_in_a_loop, range(callers))))
    return float(batch * calls.sum() / (ends.max() - began))


if __name__ == "__main__":
    job, seconds = Job(), float(sys.argv[1])
    print(
        json.dumps(
            {
                operation: {
                    f"{batch} rows, {callers} at a time": rate(job, operation, batch, callers, seconds)
                    for callers in CALLERS
                    for batch in BATCHES
                }
                for operation in ("sample", "score")
            }
        )
    )
