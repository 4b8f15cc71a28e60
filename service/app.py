"""The FastAPI application: `create_app(settings, *engines)`."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import RedirectResponse

from ddaebm import __version__
from ddaebm.model.bundle import find_bundle, load_bundle
from ddaebm.model.engine import Engine
from ddaebm.model.errors import ConfigError
from ddaebm.service.http import errors
from ddaebm.service.http.bodies import Bodies
from ddaebm.service.http.middleware import RequestMiddleware
from ddaebm.service.metrics import Metrics
from ddaebm.service.queue.batching import Batcher
from ddaebm.service.registry import load_engine, plan_workers
from ddaebm.service.routes import models, probes, samples, scores, v2
from ddaebm.service.settings import Settings
from ddaebm.service.state import Engines, Service
from ddaebm.service.tracing import load_tracing
from ddaebm.service.watchdog import watch

logger = logging.getLogger("ddaebm")

_CLOSE_SECONDS = 5  # requests have been drained by now, so that at most one inference is under way
_DESCRIPTION = "Images in four network calls, and a calibrated out-of-distribution verdict for any image."


def load_engines(settings: Settings, loaded: Engines | None = None) -> Engines:
    """The engines that `settings` name, by the names of their bundles; of `loaded` those that have not changed.

    Raises:
        BundleError, ConfigError: as they say, or two bundles of one name.
    """
    engines: dict[str, Engine] = {}
    for source in settings.bundle:
        bundle = load_bundle(find_bundle(source))
        if bundle.name in engines:
            raise ConfigError(f"two bundles are named {bundle.name!r}; export or calibrate one with another --name")
        old = (loaded or {}).get(bundle.name)
        if old and old.digest == bundle.digest:
            engines[bundle.name] = old
        else:
            engines[bundle.name] = load_engine(bundle, settings)
    return engines


def create_app(settings: Settings | None = None, *engines: Engine) -> FastAPI:
    """An app that is ready once its lifespan has started: the engines loaded and warm.

    Without `engines` those that the settings name are loaded. Raises ConfigError: as `load_tracing`.
    """
    settings = settings or Settings()
    metrics = Metrics()
    workers, _ = plan_workers(settings)
    tracing = load_tracing(__version__)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        def load(loaded: Engines) -> Engines:
            fresh = load_engines(settings, loaded)
            for name, engine in fresh.items():
                if engine is not loaded.get(name):
                    engine.warm_up(settings.max_batch)
            return fresh

        def start() -> Engines:
            if not engines:
                return load({})
            for engine in engines:
                engine.warm_up(settings.max_batch)
            return {engine.name: engine for engine in engines}

        ready = await asyncio.to_thread(start)

        batcher = Batcher(settings.max_batch, settings.max_queue_images, workers, metrics)
        metrics.queue_images.set_function(lambda: batcher.queued)
        metrics.queue_limit.set(settings.max_queue_images)
        metrics.inference_workers.set(workers)
        batcher.start()
        app.state.service = service = Service(settings, {}, batcher, metrics, load)
        service.serve(ready)
        # Of their own: the pool that encodes samples is not kept waiting by uploads.
        app.state.decoders = ThreadPoolExecutor(settings.decode_threads, "decode")
        watchdog = asyncio.create_task(watch(service))
        gc.collect()
        gc.freeze()  # what is loaded by now stays: it need not be looked through again and again
        yield
        service.draining = True
        watchdog.cancel()
        await asyncio.wait([watchdog])
        app.state.decoders.shutdown(wait=False, cancel_futures=True)
        if not await asyncio.to_thread(batcher.close, _CLOSE_SECONDS):
            logger.error("the inference threads did not end within %d s", _CLOSE_SECONDS)
        if tracing:
            await asyncio.to_thread(tracing.close)

    app = FastAPI(
        title="ddaebm",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        responses=errors.RESPONSES,
        redirect_slashes=False,
    )
    app.add_middleware(
        RequestMiddleware,
        metrics=metrics,
        max_body_bytes=settings.max_body_bytes,
        bodies=Bodies(settings.max_bodies_bytes),
        body_seconds=settings.body_seconds,
        api_keys=settings.api_keys,
        tracing=tracing,
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "Server-Timing", "Retry-After", "ETag"],
        )
    errors.install(app)
    # The check itself is the middleware's, before a body is read; this tells OpenAPI of it.
    security = [Depends(HTTPBearer(auto_error=False))] if settings.api_keys else []
    for module in (samples, scores, models, v2):
        app.include_router(module.router, dependencies=security)
    app.include_router(probes.router)

    @app.get("/", include_in_schema=False)
    async def index() -> RedirectResponse:
        return RedirectResponse("/docs")

    return app
