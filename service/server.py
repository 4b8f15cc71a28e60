"""uvicorn with signals: SIGTERM and SIGINT finish requests in flight and exit with 0; SIGHUP reloads the bundles."""

import asyncio
import logging
import resource
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI
from PIL import Image

from ddaebm.service import memory
from ddaebm.service.http.protocol import Connections, HttpProtocol
from ddaebm.service.logs import log_config
from ddaebm.service.settings import Settings
from ddaebm.service.state import Service

logger = logging.getLogger("ddaebm")


class Server(uvicorn.Server):
    """Handles signals itself: uvicorn would raise them again after the drain and so exit with 143."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.server_state = Connections()
        self._reloads: set[asyncio.Future[None]] = set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
            yield
            return
        previous = {sig: signal.signal(sig, self.on_signal) for sig in (signal.SIGTERM, signal.SIGINT)}
        # Not by the loop's own handlers: when the loop closes, it would give SIGHUP back its effect, which is to kill.
        loop = asyncio.get_running_loop()
        previous[signal.SIGHUP] = signal.signal(
            signal.SIGHUP, lambda sig, frame: loop.call_soon_threadsafe(self.on_hangup)
        )
        try:
            yield
        finally:
            for sig, handler in previous.items():
                signal.signal(sig, handler)

    async def on_tick(self, counter: int) -> bool:
        """uvicorn calls this ten times a second. Returning True ends the server."""
        service = self._service()
        return await super().on_tick(counter) or bool(service and service.runner.failed)

    def on_hangup(self) -> None:
        service = self._service()
        if service and not service.runner.draining:
            task = asyncio.ensure_future(service.registry.reload())
            self._reloads.add(task)  # a reference, or the task could be garbage-collected while it runs
            task.add_done_callback(self._reloads.discard)

    def on_signal(self, sig: int, frame: FrameType | None) -> None:
        if service := self._service():
            service.runner.draining = True
        self.handle_exit(sig, frame)

    def _service(self) -> Service | None:
        """The app's service, or None before the app has started."""
        app = self.config.app
        return getattr(app.state, "service", None) if isinstance(app, FastAPI) else None


def configure(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        host=settings.host,
        port=settings.port,
        server_header=False,
        log_config=log_config(settings.log_format),
        access_log=False,  # our own log has the request id
        timeout_graceful_shutdown=settings.drain_seconds,
    )


def allow_open_files(count: int) -> None:
    """Raise the limit on open files to `count`, or as far as allowed. Many systems start with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = count if hard == unlimited else min(count, hard)
    if soft != unlimited and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < count:
        logger.warning("%d files may be open, and connections alone may be %d: raise the limit", wanted, count)


def configure_pillow() -> None:
    """Our settings bound the pixels of an image, so Pillow's own limit is turned off for this process.

    Its warnings about odd metadata are ignored: each text holds numbers of the file, and Python keeps every text.
    """
    Image.MAX_IMAGE_PIXELS = None
    Image.preinit()  # the readers of common formats, or the first request would import them
    warnings.filterwarnings("ignore", module=r"PIL\.")


def serve(app: FastAPI, settings: Settings) -> int:
    """Serve until a signal. Returns the exit code: 0 after a drain, 1 if the server could not start or failed."""
    memory.share_pool()
    configure_pillow()
    allow_open_files(settings.max_connections + 256)
    server = Server(configure(app, settings))
    try:
        server.run()
    except SystemExit:  # uvicorn exits like this if it cannot listen, and has logged why
        return 1
    service = app.state.service if server.started else None
    return 0 if service and not service.runner.failed else 1
