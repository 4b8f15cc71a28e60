"""The FastAPI application: `create_app(settings, engine)`."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.responses import RedirectResponse

from model.bundle import find_bundle, load_bundle
from service import errors
from service.batching import Batcher, Operation
from service.engine import Engine, load_engine
from service.metrics import Metrics
from service.middleware import RequestMiddleware
from service.routes import models, probes, samples, scores
from service.settings import Settings
from service.state import Service

logger = logging.getLogger("ddaebm")

VERSION = "0.1.0"
_CLOSE_SECONDS = 5  # requests have been drained by now, so that at most one inference is under way
_DESCRIPTION = "Images in four network calls, and a calibrated out-of-distribution verdict for any image."


def create_app(settings: Settings | None = None, engine: Engine | None = None) -> FastAPI:
    """An app that is ready once its lifespan has started: the engine loaded and warm.

    Without `engine` the one that the settings name is loaded.
    """
    settings = settings or Settings()
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loaded = engine or load_engine(load_bundle(find_bundle(settings.bundle)), settings)
        await asyncio.to_thread(loaded.warm_up, settings.max_batch)

        def on_batch(operation: Operation, rows: int, seconds: float) -> None:
            metrics.batch_images.labels(operation.__name__).observe(rows)
            metrics.inference_seconds.labels(operation.__name__).observe(seconds)

        batcher = Batcher(settings.max_batch, settings.max_queue_images, on_batch)
        metrics.queue_images.set_function(lambda: batcher.queued)
        metrics.queue_limit.set(settings.max_queue_images)
        metrics.model_info.labels(loaded.name, loaded.digest, loaded.backend).set(1)
        batcher.start()
        app.state.service = Service(settings, {loaded.name: loaded}, batcher, metrics)
        logger.info("ready: %s %s on %s", loaded.name, loaded.digest[:12], loaded.backend)
        yield
        app.state.service.draining = True
        if not await asyncio.to_thread(batcher.close, _CLOSE_SECONDS):
            logger.error("the inference thread did not end within %d s", _CLOSE_SECONDS)

    app = FastAPI(
        title="ddaebm",
        version=VERSION,
        description=_DESCRIPTION,
        lifespan=lifespan,
        responses=errors.RESPONSES,
        redirect_slashes=False,
    )
    app.add_middleware(
        RequestMiddleware,
        metrics=metrics,
        max_body_bytes=settings.max_body_bytes,
        body_seconds=settings.body_seconds,
    )
    errors.install(app)
    for module in (samples, scores, models, probes):
        app.include_router(module.router)

    @app.get("/", include_in_schema=False)
    async def index() -> RedirectResponse:
        return RedirectResponse("/docs")

    return app
