"""POST /v1/samples and GET /v1/samples/{seed}.png: seeds in, images out."""

import asyncio
import base64
import io
import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from numpy.typing import NDArray

from ddaebm.model.bulk import sample_name
from ddaebm.model.engine import Engine
from ddaebm.model.files import encode_npy, write_zip
from ddaebm.model.images.decode import bring
from ddaebm.model.images.encode import encode_png, make_grid
from ddaebm.model.noise import MAX_SEED, image_seeds
from ddaebm.model.ood.levels import Scores
from ddaebm.service.http.context import Context, RequestContext
from ddaebm.service.http.errors import Problem
from ddaebm.service.http.media import BINARY, JSON, NPY, PNG, ZIP, choose_media_type, media_type_of
from ddaebm.service.http.schemas import SampledImage, SampleRequest, SampleResponse
from ddaebm.service.queue.scheduling import Operation
from ddaebm.service.state import Service, Shared

router = APIRouter(tags=["samples"])

_SMALL = 2**13  # bytes of pixels; encoding them is faster than passing them to another thread and back
_FOR_EVER = "public, max-age=31536000, immutable"


@dataclass
class Drawn:
    """The B images of one request."""

    engine: Engine
    seeds: NDArray[np.int64]  # (B,)
    images: NDArray[np.uint8]  # (B, H, W, C)
    scores: Scores | None = None


async def require_json(request: Request) -> None:
    """Raises Problem 415 if the Content-Type is not JSON."""
    if media_type_of(request.headers.get("content-type", "")) != JSON:
        raise Problem(415, "unsupported-media-type", f"send the body with Content-Type: {JSON}")


@router.post(
    "/v1/samples",
    response_model=SampleResponse,
    responses={200: {"content": {PNG: BINARY, ZIP: BINARY, NPY: BINARY}}},
    dependencies=[Depends(require_json)],
)
async def create_samples(body: SampleRequest, request: Request, service: Shared, context: Context) -> Response:
    """Make images, in the format that `Accept` asks for.

    `application/json`: base64 PNGs with the seed of each. `image/png`: the image, or a grid. `application/zip`: PNGs
    and samples.json. `application/x-npy`: uint8 (n, h, w, c). The same seed gives the same bytes, whatever else
    runs at the same time.
    """
    media_type = choose_media_type(", ".join(request.headers.getlist("accept")), list(_ENCODERS))
    if body.include and media_type not in (JSON, ZIP):
        raise Problem(422, "invalid-request", f"include: scores have no place in {media_type}; Accept {JSON} or {ZIP}")
    drawn = await _draw(body, request, service, context)
    began = time.perf_counter()
    content = await _encode(_ENCODERS[media_type], drawn)
    context.timings["encode"] = time.perf_counter() - began
    return Response(content, media_type=media_type)


@router.head("/v1/samples/{seed}.png", response_class=Response, include_in_schema=False)
@router.get("/v1/samples/{seed}.png", response_class=Response, responses={200: {"content": {PNG: BINARY}}, 304: {}})
async def get_sample(
    request: Request,
    service: Shared,
    context: Context,
    # A string: as a number, one image would have several URLs (5, 05, 5.0).
    seed: Annotated[str, Path(pattern=r"^(0|[1-9]\d{0,15})$", description=f"0 to {MAX_SEED}")],
    digest: Annotated[str | None, Query(description="of the bundle: 404 for another one; lets caches keep it")] = None,
    model: Annotated[str | None, Query(description="name of a loaded model; absent: the first")] = None,
    if_none_match: Annotated[str, Header()] = "",
) -> Response:
    """The image of a seed. It depends only on the bundle and the seed, so caches may keep it."""
    if int(seed) > MAX_SEED:
        raise Problem(422, "invalid-request", f"seed: must lie in 0..{MAX_SEED}")
    engine = service.registry.find(model)
    if digest is not None and digest != engine.digest:
        detail = f"{engine.name} is loaded with digest {engine.digest}, not the one asked for"
        raise Problem(404, "unknown-digest", detail)
    # Weak: other processors and backends may differ by a grey level.
    etag = f'W/"{engine.digest[:16]}-{seed}"'
    headers = {"ETag": etag, "Cache-Control": _FOR_EVER if digest else "no-cache"}
    if {"*", etag, etag.removeprefix("W/")} & {tag.strip() for tag in if_none_match.split(",")}:
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":  # nothing is computed, so the length is unknown
        response = Response(headers=headers, media_type=PNG)
        del response.headers["content-length"]
        return response
    seeds = np.array([int(seed)], dtype=np.int64)
    (images,) = await service.runner.run(request, context, Operation(engine, "sample"), seeds)
    service.metrics.sampled.labels(engine.name).inc()
    began = time.perf_counter()
    content = await _encode(_to_png, Drawn(engine, seeds, images))
    context.timings["encode"] = time.perf_counter() - began
    return Response(content, headers=headers, media_type=PNG)


async def _encode(encode: Callable[[Drawn], bytes], drawn: Drawn) -> bytes:
    if drawn.images.size <= _SMALL:
        return encode(drawn)
    return await asyncio.to_thread(encode, drawn)


async def _draw(body: SampleRequest, request: Request, service: Service, context: RequestContext) -> Drawn:
    engine = service.registry.find(body.model)
    if body.seeds is not None:
        seeds = np.array(body.seeds, dtype=np.int64)
    else:
        first = secrets.randbelow(MAX_SEED + 1) if body.seed is None else body.seed
        seeds = image_seeds(first, body.n * body.best_of)
    (images,) = await service.runner.run(request, context, Operation(engine, "sample"), seeds)
    service.metrics.sampled.labels(engine.name).inc(len(images))
    if not body.include and body.best_of == 1:
        return Drawn(engine, seeds, images)
    brought = images if engine.side is None else await asyncio.to_thread(bring, images, engine.contract)
    scores = Scores(*await service.runner.run(request, context, Operation(engine, "score"), brought))
    if body.best_of > 1:
        kept = np.sort(np.argsort(scores.ood_score, kind="stable")[: body.n])
        seeds, images = seeds[kept], images[kept]
        scores = scores.take(kept)
    return Drawn(engine, seeds, images, scores if body.include else None)


def _rows(drawn: Drawn) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """Seed, PNG and scores (or an empty dict) of each image."""
    for i, (seed, image) in enumerate(zip(drawn.seeds.tolist(), drawn.images, strict=True)):
        scores = {} if drawn.scores is None else {
            "energies": drawn.scores.energies[i].tolist(),
            "ood_score": float(drawn.scores.ood_score[i]),
            "p_value": float(drawn.scores.p_value[i]),
        }  # fmt: skip
        yield seed, encode_png(image), scores


def _to_json(drawn: Drawn) -> bytes:
    images = [
        SampledImage(seed=seed, image=base64.b64encode(png).decode(), **scores) for seed, png, scores in _rows(drawn)
    ]
    response = SampleResponse(model=drawn.engine.name, digest=drawn.engine.digest, images=images)
    return response.model_dump_json(exclude_none=True).encode()


def _to_png(drawn: Drawn) -> bytes:
    return encode_png(drawn.images[0] if len(drawn.images) == 1 else make_grid(drawn.images))


def _to_zip(drawn: Drawn) -> bytes:
    files, index = [], []
    for i, (seed, png, scores) in enumerate(_rows(drawn)):
        files.append((sample_name(i, seed), png))
        index.append({"file": files[-1][0], "seed": seed, **scores})
    about = {"model": drawn.engine.name, "digest": drawn.engine.digest, "images": index}
    buffer = io.BytesIO()
    write_zip(buffer, [*files, ("samples.json", json.dumps(about).encode())])
    return buffer.getvalue()


def _to_npy(drawn: Drawn) -> bytes:
    return encode_npy(drawn.images)


_ENCODERS = {JSON: _to_json, PNG: _to_png, ZIP: _to_zip, NPY: _to_npy}  # the first is the default
