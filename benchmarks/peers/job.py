"""The work of a request, the same code for every peer: seeds to a PNG, PNGs to scores. Only the server differs.

Requests and answers are those of this service: `{"n": 1, "seed": 5}` at /v1/samples, answered by a PNG (a grid of
several), and `{"images": [base64 PNG]}` at /v1/scores, answered by JSON. BENCH_BUNDLE names the bundle.
"""

import base64
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.bundle import Bundle, find_bundle, load_bundle
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.decode import decode
from ddaebm.model.images.encode import encode_png, make_grid
from ddaebm.model.noise import image_seeds
from ddaebm.model.runtime import OnnxEngine

MAX_BATCH = 64  # of every server: the default of this service's DDAEBM_MAX_BATCH
WORKERS = int(os.environ.get("BENCH_WORKERS", "1"))  # copies of the model, each with its own batches
WAIT_SECONDS = 0.01  # seconds to wait for a batch, for servers that need it: the default of Ray Serve

Array = NDArray[Any]


def open_bundle() -> Bundle:
    return load_bundle(find_bundle(os.environ["BENCH_BUNDLE"]))


class Job:
    """Both graphs, at most MAX_BATCH rows a call, on BENCH_THREADS threads of ONNX Runtime."""

    def __init__(self) -> None:
        bundle = open_bundle()
        self.contract = bundle.contract
        self.runtime = OnnxEngine(bundle, threads=int(os.environ["BENCH_THREADS"]))

    def sample(self, seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(B,) -> (B, H, W, C)."""
        return np.concatenate([self.runtime.sample(part) for part in _parts(seeds)])

    def score(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(B, H, W, C) -> (B, T + 2): energies, OOD score, p-value."""
        scores = [self.runtime.score(part) for part in _parts(images)]
        return np.concatenate([np.column_stack([s.energies, s.ood_score, s.p_value]) for s in scores])


def _parts(rows: Array) -> list[Array]:
    return [rows[start : start + MAX_BATCH] for start in range(0, len(rows), MAX_BATCH)]


def seeds_of(body: dict[str, Any]) -> NDArray[np.int64]:
    return image_seeds(int(body["seed"]), int(body["n"]))


def pixels_of(body: dict[str, Any], contract: Contract) -> NDArray[np.uint8]:
    return np.stack([decode(base64.b64decode(image), contract).pixels for image in body["images"]])


def png_of(images: NDArray[np.uint8]) -> bytes:
    return encode_png(images[0] if len(images) == 1 else make_grid(images))


def verdicts_of(rows: NDArray[np.float64]) -> dict[str, Any]:
    """Rows of `Job.score` as the answer."""
    return {
        "results": [
            {"energies": row[:-2].tolist(), "ood_score": row[-2], "p_value": row[-1], "is_ood": bool(row[-1] <= 0.05)}
            for row in rows
        ]
    }


def merged(operation: Callable[[Array], Array], requests: Sequence[Array]) -> list[Array]:
    """The rows of several requests in one call, for servers that batch requests and not rows."""
    return np.split(operation(np.concatenate(requests)), np.cumsum([len(rows) for rows in requests])[:-1])
