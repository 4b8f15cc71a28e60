"""POST /v1/scores: images in, energies, p-values and verdicts out."""

import asyncio
import base64
import time
from functools import partial
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request

from ddaebm.model.engine import Engine
from ddaebm.model.errors import ImageError, ImageTooLargeError
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.decode import Decoded
from ddaebm.model.images.encode import encode_png, overlay
from ddaebm.model.ood.conformal import fdr_threshold
from ddaebm.model.ood.levels import Explained, Scores, because
from ddaebm.model.ood.masks import colour_of
from ddaebm.model.ood.regions import regions
from ddaebm.service.decoding.quick import decode_quick
from ddaebm.service.decoding.slot import Job
from ddaebm.service.http.context import Context, Deadline, RequestContext
from ddaebm.service.http.errors import Problem
from ddaebm.service.http.paths import UPLOADS, traits
from ddaebm.service.http.schemas import ImageProblem, Region, Score, ScoreQuery, ScoreResponse, Unreadable
from ddaebm.service.http.uploads import REQUEST_BODY, Body, parsing, read_body, read_entries
from ddaebm.service.queue.scheduling import Operation
from ddaebm.service.state import Service, Shared

router = APIRouter(tags=["scores"])

Item = tuple[str, Decoded | ImageProblem]  # name, and pixels or a problem


@router.post("/v1/scores", response_model_exclude_none=True, openapi_extra={"requestBody": REQUEST_BODY})
@traits(UPLOADS)
async def create_scores(
    request: Request, service: Shared, context: Context, query: Annotated[ScoreQuery, Query()]
) -> ScoreResponse:
    """Score images: energies, OOD score, p-value and verdict of each, in the order sent.

    An image that cannot be read has an `error` instead. The status is 200 if at least one image was scored.
    """
    engine = service.registry.find(query.model)
    scorer = engine.scorer
    alpha = scorer.default_alpha if query.alpha is None else query.alpha
    for name, rate in (("alpha", alpha), ("fdr", query.fdr)):
        if rate is not None and rate < scorer.smallest_p:
            detail = f"{name}: {rate:g} can never fire; the smallest possible p is {scorer.smallest_p:.3g}"
            raise Problem(422, f"{name}-too-small", detail)
    uploads = await _decode(request, service, context, engine.contract)
    context.body.release()
    readable = [item.pixels for _, item in uploads if isinstance(item, Decoded)]
    if not readable:
        first = next(item for _, item in uploads if isinstance(item, ImageProblem))
        raise Problem(first.status, first.type.rpartition(":")[2], first.detail)
    explained = query.heatmap or query.regions
    operation = Operation(engine, "explain" if explained else "score")
    arrays = await service.runner.run(request, context, operation, np.stack(readable))
    scores = Explained(*arrays) if explained else Scores(*arrays)
    service.registry.count_scores(engine, scores, alpha)
    if not explained:
        return respond(engine, alpha, query.fdr, uploads, scores)
    began = time.perf_counter()
    response = await asyncio.to_thread(respond, engine, alpha, query.fdr, uploads, scores, query.heatmap)
    context.timings["encode"] = time.perf_counter() - began
    return response


async def _decode(request: Request, service: Service, context: RequestContext, contract: Contract) -> list[Item]:
    """The images of the body; those that cannot be read have a problem instead."""
    settings, deadline = service.settings, context.start(request.headers, service.settings.deadline_seconds)
    content = await read_body(request, context, service.parsers, settings.max_body_bytes)
    body = Body(content, request.headers.get("content-type", ""), settings, contract.channels)
    del content
    began = time.perf_counter()
    read = partial(_read, body, contract, deadline)
    del body
    names, outcomes = await parsing(service.parsers.of(context), context, read)
    del read  # and with it the body: what the decoders need, they hold
    jobs = [outcome for outcome in outcomes if isinstance(outcome, Job)]
    decoded = iter(await service.runner.decode(request, context, jobs)) if jobs else iter(())
    images = [next(decoded) if isinstance(outcome, Job) else outcome for outcome in outcomes]
    context.timings["decode"] = time.perf_counter() - began
    return [
        (name, _image_problem(image) if isinstance(image, ImageError) else image)
        for name, image in zip(names, images, strict=True)
    ]


def _read(body: Body, contract: Contract, deadline: Deadline) -> tuple[list[str], list[Decoded | ImageError | Job]]:
    entries = read_entries(body)
    return [entry.name for entry in entries], decode_quick(entries, contract, body.settings, deadline.check)


def _image_problem(error: ImageError) -> ImageProblem:
    if isinstance(error, ImageTooLargeError):
        problem = Problem(413, "too-many-pixels", str(error))
    else:
        problem = Problem(422, "unreadable-image", str(error))
    return ImageProblem(**problem.body())


def respond(
    engine: Engine,
    alpha: float,
    fdr: float | None,
    uploads: list[Item],
    scores: Scores | Explained,
    pictures: bool = False,
) -> ScoreResponse:
    """One result per upload, in the order sent. `scores` has a row for each readable one.

    Args:
        pictures: draw heatmaps as well as list the regions of `Explained` scores.
    """
    threshold = None if fdr is None else fdr_threshold(scores.p_value, fdr)
    quantiles = engine.explainer.energy_quantiles(scores.energies)
    results: list[Score | Unreadable] = []
    row = 0
    for index, (name, item) in enumerate(uploads):
        if isinstance(item, ImageProblem):
            results.append(Unreadable(index=index, name=name, error=item))
            continue
        p_value = float(scores.p_value[row])
        picture = found = None
        if isinstance(scores, Explained):
            heat = scores.heat[row]
            found = [Region(box=region.box, strength=region.strength) for region in regions(heat, len(item.pixels))]
            if pictures:
                png = encode_png(overlay(colour_of(item.pixels), heat, *engine.explainer.warm))
                picture = base64.b64encode(png).decode()
        reason = because(scores.box[row])
        results.append(
            Score(
                index=index, name=name, energies=scores.energies[row].tolist(),
                energy_quantiles=quantiles[row].tolist(), ood_score=float(scores.ood_score[row]),
                p_value=p_value, is_ood=p_value <= alpha, resized=item.resized, heatmap=picture, regions=found,
                selected=None if threshold is None else p_value <= threshold,
                because=reason, box=scores.box[row].tolist() if reason == "spot" else None,
            )
        )  # fmt: skip
        row += 1
    return ScoreResponse(
        model=engine.name,
        digest=engine.digest,
        alpha=alpha,
        fdr=fdr,
        calibration_size=len(engine.scorer.calibration_scores),
        results=results,
    )
