"""POST /v1/samples: seeds in, images out."""

import asyncio
import base64
import secrets
import time
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from numpy.typing import NDArray

from model.images import encode_png, make_grid
from model.noise import MAX_SEED, image_seeds
from service.errors import Problem
from service.schemas import SampledImage, SampleRequest, SampleResponse
from service.state import Shared

router = APIRouter(tags=["samples"])

_JSON, _PNG = "application/json", "image/png"


def choose_media_type(accept: str) -> str:
    """JSON or PNG by the Accept header, RFC 9110 section 12.5.1; JSON where both are as welcome.

    Raises:
        Problem: 406, neither is acceptable.
    """
    best, best_quality = None, 0.0
    for media_type in (_JSON, _PNG):
        quality = _quality(accept or "*/*", media_type)
        if quality > best_quality:
            best, best_quality = media_type, quality
    if best is None:
        raise Problem(406, "not-acceptable", f"Accept must allow {_JSON} or {_PNG}")
    return best


def _quality(accept: str, media_type: str) -> float:
    """q of the most specific range in `accept` that covers `media_type`, else 0."""
    ranges = {media_type: 2, media_type.split("/")[0] + "/*": 1, "*/*": 0}
    best = (-1, 0.0)
    for item in accept.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        if name not in ranges:
            continue
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            best = max(best, (ranges[name], float(quality)))
        except ValueError:
            continue  # a range with a broken weight asks for nothing
    return best[1]


async def require_json(request: Request) -> None:
    """Raises Problem 415 for a body that does not call itself JSON."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != _JSON:
        raise Problem(415, "unsupported-media-type", f"send the body with Content-Type: {_JSON}")


@router.post(
    "/v1/samples",
    response_model=SampleResponse,
    responses={200: {"content": {_PNG: {"schema": {"type": "string", "format": "binary"}}}}},
    dependencies=[Depends(require_json)],
)
async def create_samples(body: SampleRequest, request: Request, service: Shared) -> Response:
    """Images as base64 PNGs with the seed of each, or, with `Accept: image/png`, one PNG: the image, or a grid.

    The same seed gives the same bytes, whatever else is asked for at the same time.
    """
    media_type = choose_media_type(", ".join(request.headers.getlist("accept")))
    engine = service.engine(body.model)
    if body.seeds is not None:
        seeds = np.array(body.seeds, dtype=np.int64)
    else:
        first = secrets.randbelow(MAX_SEED + 1) if body.seed is None else body.seed
        seeds = image_seeds(first, body.n)
    (images,) = await service.run(request, engine.sample, seeds)
    service.metrics.sampled.labels(engine.name).inc(len(images))

    began = time.perf_counter()
    if media_type == _PNG:
        content = await asyncio.to_thread(_render, images)
    else:
        response = SampleResponse(
            model=engine.name, digest=engine.digest, images=await asyncio.to_thread(_encode, seeds, images)
        )
        content = response.model_dump_json().encode()
    request.state.timings["encode"] = time.perf_counter() - began
    return Response(content, media_type=media_type)


def _render(images: NDArray[np.uint8]) -> bytes:
    return encode_png(images[0] if len(images) == 1 else make_grid(images))


def _encode(seeds: NDArray[np.int64], images: NDArray[Any]) -> list[SampledImage]:
    return [
        SampledImage(seed=int(seed), image=base64.b64encode(encode_png(image)).decode())
        for seed, image in zip(seeds, images, strict=True)
    ]
