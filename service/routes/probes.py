"""Probes for an orchestrator, and metrics for Prometheus."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ddaebm.service.http.errors import Problem
from ddaebm.service.http.paths import PROBE, traits
from ddaebm.service.http.schemas import Status
from ddaebm.service.state import Shared

router = APIRouter(tags=["probes"])


@router.head("/livez", include_in_schema=False)
@router.get("/livez")
@traits(PROBE)
async def livez(service: Shared) -> Status:
    """200 unless inference threads died or hung twice. Then only a restart helps."""
    if service.runner.failed:
        raise Problem(503, "not-live", service.runner.fault() or "")
    return Status(status="live")


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz")
@router.api_route("/health", methods=["GET", "HEAD"], include_in_schema=False)
@traits(PROBE)
async def readyz(service: Shared) -> Status:
    """200 while the service accepts requests."""
    if reason := service.runner.fault():
        raise Problem(503, "not-ready", reason)
    return Status(status="ready")


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
@traits(PROBE)
async def metrics(service: Shared) -> Response:
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)
