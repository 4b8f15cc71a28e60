"""/v2: the Open Inference Protocol, for clients of Triton and KServe.

Each loaded model appears as two: NAME-sampler takes seeds and returns images, NAME-scorer takes images of the model's
size and returns energies, scores and p-values.
"""

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from ddaebm.model.engine import Engine
from ddaebm.model.images.decode import bring
from ddaebm.model.noise import MAX_SEED
from ddaebm.model.ood.levels import Scores
from ddaebm.service.http.context import Context, RequestContext
from ddaebm.service.http.errors import Problem
from ddaebm.service.http.openinference import HEADER_LENGTH, TensorSpec, encode_response, parse_request
from ddaebm.service.http.paths import PROBE, UPLOADS, traits
from ddaebm.service.http.schemas import MAX_SAMPLES
from ddaebm.service.http.uploads import parsing, read_body
from ddaebm.service.queue.scheduling import Operation
from ddaebm.service.state import InferStatistics, Service, Shared

router = APIRouter(prefix="/v2", tags=["open inference protocol"])

VERSION = "1"
_BODY = {"requestBody": {"required": True, "content": {"application/json": {}, "application/octet-stream": {}}}}


@dataclass(frozen=True)
class V2Model:
    """The sampler or the scorer of a loaded model."""

    name: str
    engine: Engine
    operation: Operation
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    most: int  # most rows in a request


def models(service: Service) -> dict[str, V2Model]:
    found: dict[str, V2Model] = {}
    for engine in service.registry.engines.values():
        images = TensorSpec("images", "UINT8", (-1, *engine.contract.shape))
        samples = TensorSpec("images", "UINT8", (-1, *engine.native.shape))
        numbers = TensorSpec("ood_score", "FP64", (-1, 1)), TensorSpec("p_value", "FP64", (-1, 1))
        energies = TensorSpec("energies", "FP32", (-1, engine.num_steps))
        box = TensorSpec("box", "INT64", (-1, 4))  # of the spot that is the reason; zeros: the whole image is
        sampler = V2Model(f"{engine.name}-sampler", engine, Operation(engine, "sample"),
                          TensorSpec("seeds", "INT64", (-1, 1)), (samples,), MAX_SAMPLES)  # fmt: skip
        scorer = V2Model(f"{engine.name}-scorer", engine, Operation(engine, "score"), images, (energies, *numbers, box),
                         service.settings.max_files)  # fmt: skip
        found |= {sampler.name: sampler, scorer.name: scorer}
    return found


def find(service: Service, name: str, version: str) -> V2Model:
    """The named model. Raises Problem 404 with the known names."""
    known = models(service)
    if name not in known:
        raise Problem(404, "unknown-model", f"no model {name[:100]!r}; there are {', '.join(known)}")
    if version != VERSION:
        raise Problem(404, "unknown-version", f"{name} has version {VERSION} alone")
    return known[name]


@router.get("")
async def server_metadata(request: Request) -> dict[str, Any]:
    extensions = ["binary_tensor_data", "model_configuration", "model_repository", "statistics"]
    return {"name": "ddaebm", "version": request.app.version, "extensions": extensions}


@router.get("/health/live")
@traits(PROBE)
async def server_live(service: Shared) -> dict[str, bool]:
    if service.runner.failed:
        raise Problem(503, "not-live", service.runner.fault() or "")
    return {"live": True}


@router.get("/health/ready")
@traits(PROBE)
async def server_ready(service: Shared) -> dict[str, bool]:
    if reason := service.runner.fault():
        raise Problem(503, "not-ready", reason)
    return {"ready": True}


@router.post("/repository/index")
async def repository_index(service: Shared) -> list[dict[str, str]]:
    return [{"name": name, "version": VERSION, "state": "READY", "reason": ""} for name in models(service)]


@router.get("/models/stats", include_in_schema=False)
async def statistics(service: Shared) -> dict[str, Any]:
    return {"model_stats": [_describe(model, service) for model in models(service).values()]}


@router.get("/models/{name}/ready")
@router.get("/models/{name}/versions/{version}/ready", include_in_schema=False)
async def model_ready(name: str, service: Shared, version: str = VERSION) -> dict[str, Any]:
    model = find(service, name, version)
    if reason := service.runner.fault():
        raise Problem(503, "not-ready", reason)
    return {"name": model.name, "ready": True}


@router.get("/models/{name}")
@router.get("/models/{name}/versions/{version}", include_in_schema=False)
async def model_metadata(name: str, service: Shared, version: str = VERSION) -> dict[str, Any]:
    model = find(service, name, version)
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": model.engine.backend,
        "inputs": [model.input.metadata()],
        "outputs": [output.metadata() for output in model.outputs],
        "parameters": {"model": model.engine.name, "digest": model.engine.digest},
    }


@router.get("/models/{name}/config")
@router.get("/models/{name}/versions/{version}/config", include_in_schema=False)
async def model_config(name: str, service: Shared, version: str = VERSION) -> dict[str, Any]:
    """Model configuration in Triton's format; `dims` exclude the batch."""

    def tensor(spec: TensorSpec) -> dict[str, Any]:
        return {"name": spec.name, "data_type": f"TYPE_{spec.datatype}", "dims": list(spec.shape[1:])}

    model = find(service, name, version)
    return {
        "name": model.name,
        "platform": model.engine.backend,
        "max_batch_size": model.most,
        "input": [tensor(model.input)],
        "output": [tensor(output) for output in model.outputs],
    }


@router.post("/models/{name}/infer", response_class=Response, openapi_extra=_BODY)
@router.post("/models/{name}/versions/{version}/infer", response_class=Response, include_in_schema=False)
@traits(UPLOADS)
async def infer(name: str, request: Request, service: Shared, context: Context, version: str = VERSION) -> Response:
    """Run a sampler or scorer on JSON or binary tensors."""
    model = find(service, name, version)
    statistics = service.statistics.setdefault(model.name, InferStatistics())
    began = time.perf_counter()
    try:
        response = await _infer(model, version, request, service, context)
    except BaseException:
        statistics.failures += 1
        statistics.seconds["fail"] += time.perf_counter() - began
        raise
    statistics.requests += 1
    statistics.last = time.time_ns() // 1_000_000
    statistics.seconds["success"] += time.perf_counter() - began
    for part in ("queue", "infer"):
        statistics.seconds[part] += context.timings[part]
    return response


async def _infer(model: V2Model, version: str, request: Request, service: Service, context: RequestContext) -> Response:
    deadline = context.start(request.headers, service.settings.deadline_seconds)
    body = await read_body(request, context, service.parsers, service.settings.max_body_bytes)
    length = request.headers.get(HEADER_LENGTH)
    began = time.perf_counter()
    read = partial(parse_request, body, length, model.input, model.outputs, model.most)
    asked = await parsing(service.parsers.of(context), context, read)
    context.timings["decode"] = time.perf_counter() - began
    if asked.timeout is not None:
        deadline.shorten(asked.timeout)
    context.low = context.low or asked.low
    rows = asked.tensor
    if model.input.name == "seeds":
        rows = rows[:, 0]
        if rows.min() < 0 or rows.max() > MAX_SEED:
            raise Problem(422, "invalid-request", f"seeds must lie in 0..{MAX_SEED}")
    elif model.engine.side is not None:
        rows = await asyncio.to_thread(bring, rows, model.engine.contract)  # all of it is opaque
    arrays = await service.runner.run(request, context, model.operation, rows)
    if model.input.name == "seeds":
        service.metrics.sampled.labels(model.engine.name).inc(len(rows))
    else:
        service.registry.count_scores(model.engine, Scores(*arrays), model.engine.scorer.default_alpha)
    service.statistics[model.name].images += len(rows)
    found = {spec.name: (spec, array.reshape(len(rows), *spec.shape[1:]))
             for spec, array in zip(model.outputs, arrays, strict=True)}  # fmt: skip
    wanted = [(*found[output], binary) for output, binary in asked.outputs.items()]
    began = time.perf_counter()
    content, headers = await asyncio.to_thread(encode_response, model.name, version, asked.id, wanted)
    context.timings["encode"] = time.perf_counter() - began
    return Response(content, headers=headers)


@router.get("/models/{name}/stats")
@router.get("/models/{name}/versions/{version}/stats", include_in_schema=False)
async def model_statistics(name: str, service: Shared, version: str = VERSION) -> dict[str, Any]:
    return {"model_stats": [_describe(find(service, name, version), service)]}


def _describe(model: V2Model, service: Service) -> dict[str, Any]:
    seen = service.statistics.get(model.name, InferStatistics())

    def duration(count: int, part: str | None = None) -> dict[str, int]:
        return {"count": count, "ns": round(1e9 * seen.seconds[part]) if part else 0}

    return {
        "name": model.name,
        "version": VERSION,
        "last_inference": seen.last,
        "inference_count": seen.images,
        "execution_count": seen.requests,  # requests share batches; /metrics counts batches
        "inference_stats": {
            "success": duration(seen.requests, "success"),
            "fail": duration(seen.failures, "fail"),
            "queue": duration(seen.requests, "queue"),
            "compute_input": duration(seen.requests),
            "compute_infer": duration(seen.requests, "infer"),
            "compute_output": duration(seen.requests),
            "cache_hit": duration(0),
            "cache_miss": duration(0),
        },
        "batch_stats": [],
    }
