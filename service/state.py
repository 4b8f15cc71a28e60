"""The object on the app that all routes share."""

from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request

from ddaebm.service.http.uploads import Parsers
from ddaebm.service.metrics import Metrics
from ddaebm.service.registry import Registry
from ddaebm.service.runner import Runner
from ddaebm.service.settings import Settings


@dataclass
class InferStatistics:
    """Counts of one model of the Open Inference Protocol since the start."""

    requests: int = 0
    failures: int = 0
    images: int = 0
    last: int = 0  # milliseconds since the epoch
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("success", "fail", "queue", "infer"), 0.0))


@dataclass
class Service:
    settings: Settings
    metrics: Metrics
    registry: Registry
    runner: Runner
    parsers: Parsers
    statistics: dict[str, InferStatistics] = field(default_factory=dict)  # by the model names of /v2


async def get_service(request: Request) -> Service:  # async, or FastAPI would call it on a worker thread
    return cast(Service, request.app.state.service)


Shared = Annotated[Service, Depends(get_service)]
