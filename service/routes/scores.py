"""POST /v1/scores: images in, energies, p-values and verdicts out."""

import asyncio
import time
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from numpy.typing import NDArray
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from model.errors import ImageError, ImageTooLargeError
from model.images import Contract, Decoded, convert, open_image
from model.runtime import Scores
from service.engine import Engine
from service.errors import Problem
from service.schemas import ImageProblem, Score, ScoreResponse, Unreadable
from service.settings import Settings
from service.state import Shared

router = APIRouter(tags=["scores"])

_FIELD = "images"
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [_FIELD],
                "properties": {_FIELD: {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        }
    },
}


@router.post("/v1/scores", openapi_extra={"requestBody": _BODY})
async def create_scores(
    request: Request,
    service: Shared,
    alpha: Annotated[float, Query(gt=0, lt=1, description="false-alarm rate that is accepted")] = 0.05,
    model: Annotated[str | None, Query(description="name of a loaded model; absent: the first")] = None,
) -> ScoreResponse:
    """Energies, OOD score, p-value and verdict of each image, in the order sent.

    An image that cannot be read has an `error` in its place; the status is 200 while at least one was scored.
    """
    engine = service.engine(model)
    scorer = engine.scorer
    if alpha < scorer.smallest_p:
        detail = f"alpha: {alpha:g} can never fire; the smallest possible p is {scorer.smallest_p:.3g}"
        raise Problem(422, "alpha-too-small", detail)
    files = await read_files(request, service.settings.max_files)

    began = time.perf_counter()
    decoded = await asyncio.to_thread(decode_all, files, engine.contract, service.settings)
    request.state.timings["decode"] = time.perf_counter() - began
    readable = [item.pixels for _, item in decoded if isinstance(item, Decoded)]
    if not readable:
        first = next(item for _, item in decoded if isinstance(item, ImageProblem))
        raise Problem(first.status, first.type.rpartition(":")[2], first.detail)
    scores = Scores(*await service.run(request, engine.score, np.stack(readable)))
    for p in scores.p_value:
        service.metrics.scored.labels(engine.name, "ood" if p <= alpha else "in").inc()
        service.metrics.p_value.labels(engine.name).observe(p)
    return respond(engine, alpha, decoded, scores)


async def read_files(request: Request, max_files: int) -> list[tuple[str, bytes]]:
    """(file name, contents) of every part named `images`.

    Raises:
        Problem: 415 no multipart body, 413 too many files, 400 malformed, 422 nothing to score.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Problem(415, "unsupported-media-type", f"send multipart/form-data with files named {_FIELD}")
    try:
        async with request.form(max_files=max_files, max_fields=16) as form:
            parts = form.multi_items()
            for name, part in parts:
                if name != _FIELD or not isinstance(part, UploadFile):
                    raise Problem(
                        422, "invalid-request", f"every part must be a file named {_FIELD} (curl -F {_FIELD}=@FILE)"
                    )
            files = [
                (_printable(part.filename), await part.read()) for _, part in parts if isinstance(part, UploadFile)
            ]
    except HTTPException as error:  # Starlette tells its reasons apart by text alone
        if str(error.detail).startswith("Too many files"):
            raise Problem(413, "too-many-images", f"more than {max_files} files; send fewer at once") from error
        raise
    except (UnicodeError, LookupError, ValueError) as error:  # a charset that the client made up
        raise Problem(400, "malformed-form", "the form cannot be decoded; leave its charset out") from error
    if not files:
        raise Problem(422, "invalid-request", f"no file named {_FIELD} (curl -F {_FIELD}=@FILE)")
    return files


def _printable(name: str | None) -> str:
    return (name or "").encode("utf-8", "replace").decode()  # some charsets decode to what UTF-8 cannot hold


def decode_all(
    files: list[tuple[str, bytes]], contract: Contract, settings: Settings
) -> list[tuple[str, Decoded | ImageProblem]]:
    """Every file by name, decoded or with what is wrong with it. Headers are checked before pixels are decoded."""
    budget = settings.max_request_pixels
    decoded: list[tuple[str, Decoded | ImageProblem]] = []
    for name, data in files:
        try:
            image = open_image(data, settings.max_image_pixels)
            pixels = image.width * image.height
            if pixels > budget:
                raise ImageTooLargeError(
                    f"the request's images are over {settings.max_request_pixels} pixels together; send fewer at once"
                )
            budget -= pixels
            decoded.append((name, convert(image, contract)))
        except ImageError as error:
            decoded.append((name, _image_problem(error)))
    return decoded


def _image_problem(error: ImageError) -> ImageProblem:
    if isinstance(error, ImageTooLargeError):
        problem = Problem(413, "too-many-pixels", str(error))
    else:
        problem = Problem(422, "unreadable-image", str(error))
    return ImageProblem(**problem.body())


def respond(
    engine: Engine, alpha: float, decoded: list[tuple[str, Decoded | ImageProblem]], scores: Scores
) -> ScoreResponse:
    """One result a file, in the order sent; rows of `scores` are the readable ones."""
    rows: Any = iter(zip(*scores, strict=True))
    results: list[Score | Unreadable] = []
    for index, (name, item) in enumerate(decoded):
        if isinstance(item, ImageProblem):
            results.append(Unreadable(index=index, name=name, error=item))
            continue
        row: tuple[NDArray[np.float32], float, float] = next(rows)
        energies, ood_score, p_value = row
        results.append(
            Score(
                index=index, name=name, energies=energies.tolist(), ood_score=float(ood_score),
                p_value=float(p_value), is_ood=bool(p_value <= alpha), resized=item.resized,
            )
        )  # fmt: skip
    return ScoreResponse(
        model=engine.name,
        digest=engine.digest,
        alpha=alpha,
        calibration_size=len(engine.scorer.calibration_scores),
        results=results,
    )
