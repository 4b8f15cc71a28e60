"""The FastAPI application: `create_app(settings, *engines)`."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from starlette.responses import RedirectResponse

from ddaebm import __version__
from ddaebm.model.engine import Engine
from ddaebm.service.decoding.processes import Decoders
from ddaebm.service.http import errors
from ddaebm.service.http.bodies import Bodies
from ddaebm.service.http.middleware import Cors, RequestMiddleware
from ddaebm.service.http.paths import Paths
from ddaebm.service.http.uploads import Parsers
from ddaebm.service.metrics import Metrics
from ddaebm.service.queue.batching import Batcher
from ddaebm.service.queue.scheduling import KINDS, Operation
from ddaebm.service.registry import Engines, Registry, load_engines, plan_workers
from ddaebm.service.routes import models, probes, samples, scores, v2
from ddaebm.service.runner import Runner
from ddaebm.service.settings import Settings
from ddaebm.service.state import Service
from ddaebm.service.tracing import load_tracing
from ddaebm.service.watchdog import watch

logger = logging.getLogger("ddaebm")

_CLOSE_SECONDS = 5  # requests have been drained by now, so at most one inference is running
_DESCRIPTION = "Images in four network calls, and a calibrated out-of-distribution verdict for any image."
_PAGES = ("/", "/docs", "/docs/oauth2-redirect", "/openapi.json")  # public: they tell nothing that is secret


def create_app(settings: Settings | None = None, *engines: Engine) -> FastAPI:
    """An app that is ready once its lifespan has started: the engines are loaded and warm.

    Without `engines`, those that the settings name are loaded.

    Raises:
        ConfigError: the settings contradict each other, or ask for traces without the otel extra.
    """
    settings = settings or Settings()
    metrics, tracing = Metrics(), load_tracing(__version__)
    plan_workers(settings)  # raises here, not in the lifespan

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = service = await _start(settings, metrics, engines)
        watchdog = asyncio.create_task(watch(service))
        gc.collect()
        gc.freeze()  # what is loaded by now stays: the collector need not look at it again
        yield
        service.runner.draining = True
        watchdog.cancel()
        await asyncio.wait([watchdog])
        await _stop(service)
        if tracing:
            await asyncio.to_thread(tracing.close)

    app = FastAPI(title="ddaebm", version=__version__, description=_DESCRIPTION, lifespan=lifespan,
                  responses=errors.RESPONSES, redirect_slashes=False)  # fmt: skip
    routers = [module.router for module in (samples, scores, models, v2)]
    app.add_middleware(
        RequestMiddleware,
        paths=Paths([route for router in (*routers, probes.router) for route in router.routes], _PAGES),
        metrics=metrics,
        max_body_bytes=settings.max_body_bytes,
        bodies=Bodies(settings.max_bodies_bytes, settings.body_seconds),
        api_keys=settings.api_keys,
        tracing=tracing,
    )
    if settings.cors_origins:
        app.add_middleware(
            Cors,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "Server-Timing", "Retry-After", "ETag"],
        )
    errors.install(app)
    # The middleware checks keys, before it reads a body. This tells OpenAPI about it.
    security = [Depends(HTTPBearer(auto_error=False))] if settings.api_keys else []
    for router in routers:
        app.include_router(router, dependencies=security)
    app.include_router(probes.router)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index() -> RedirectResponse:
        return RedirectResponse("/docs")

    return app


async def _start(settings: Settings, metrics: Metrics, engines: Sequence[Engine]) -> Service:
    """Load and warm the engines, then start the inference threads."""

    def load(loaded: Engines) -> Engines:
        fresh = load_engines(settings, loaded)
        warm_up(*(engine for name, engine in fresh.items() if engine is not loaded.get(name)))
        return fresh

    def warm_up(*cold: Engine) -> Engines:
        for engine in cold:
            engine.warm_up(settings.max_batch)
        return {engine.name: engine for engine in cold}

    def keep(current: Engines) -> None:
        batcher.keep({Operation(engine, kind) for engine in current.values() for kind in KINDS})

    workers, _ = plan_workers(settings)
    ready = await asyncio.to_thread(warm_up, *engines) if engines else await asyncio.to_thread(load, {})
    batcher = Batcher(settings.max_batch, settings.max_queue_images, workers, metrics)
    metrics.queue_images.set_function(lambda: batcher.queued)
    metrics.queue_limit.set(settings.max_queue_images)
    metrics.inference_workers.set(workers)
    batcher.start()
    registry = Registry(load, metrics, keep)
    registry.serve(ready)
    decoders = Decoders(settings.decode_processes, settings.max_decode_pixels, metrics.decoder_restarts.inc)
    metrics.decode_pixels.set_function(lambda: decoders.waiting_pixels)
    runner = Runner(settings, batcher, decoders)
    return Service(settings, metrics, registry, runner, Parsers(settings.decode_threads))


async def _stop(service: Service) -> None:
    service.parsers.close()
    if not await asyncio.to_thread(service.runner.decoders.close, _CLOSE_SECONDS):
        logger.error("the decoder processes did not end within %d s", _CLOSE_SECONDS)
    if not await asyncio.to_thread(service.runner.batcher.close, _CLOSE_SECONDS):
        logger.error("the inference threads did not end within %d s", _CLOSE_SECONDS)
