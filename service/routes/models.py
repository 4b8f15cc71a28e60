"""GET /v1/models: the loaded models and the guarantees of their verdicts."""

import dataclasses

from fastapi import APIRouter

from ddaebm.model.engine import Engine
from ddaebm.model.ood.conformal import false_alarm_interval
from ddaebm.service.http.schemas import Calibration, FalseAlarms, Fit, ModelInfo, ModelList, Preprocessing
from ddaebm.service.state import Shared

router = APIRouter(tags=["models"])

_ALPHAS = (0.01, 0.05, 0.1)


def describe(engine: Engine) -> ModelInfo:
    scorer = engine.scorer
    size = len(scorer.calibration_scores)
    intervals = []
    for alpha in _ALPHAS:
        if alpha >= scorer.smallest_p:
            low, high = false_alarm_interval(alpha, size)
            intervals.append(FalseAlarms(alpha=alpha, low=low, high=high))
    return ModelInfo(
        name=engine.name,
        digest=engine.digest,
        backend=engine.backend,
        num_steps=engine.num_steps,
        preprocessing=Preprocessing(**dataclasses.asdict(engine.contract)),
        calibration=Calibration(size=size, smallest_p=scorer.smallest_p, false_alarm_intervals=intervals),
        form="whole and spot" if scorer.has_spots else "whole",
        fit=None if engine.fit is None else Fit.model_validate(engine.fit),
    )


@router.get("/v1/models", response_model_exclude_none=True)
async def list_models(service: Shared) -> ModelList:
    return ModelList(models=[describe(engine) for engine in service.registry.engines.values()])


@router.get("/v1/models/{name}", response_model_exclude_none=True)
async def get_model(name: str, service: Shared) -> ModelInfo:
    return describe(service.registry.find(name))
