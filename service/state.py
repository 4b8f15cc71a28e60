"""What the routes share: the engines, the inference thread, and how a request's work is run on it."""

import asyncio
import ctypes
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

from fastapi import Depends, Request
from numpy.typing import NDArray

from ddaebm.model.engine import Engine
from ddaebm.model.errors import DdaebmError
from ddaebm.model.ood.drift import Drift
from ddaebm.model.ood.levels import Explained, Scores
from ddaebm.service.http.errors import CLIENT_GONE, Problem
from ddaebm.service.metrics import Metrics
from ddaebm.service.queue.admission import QueueFullError
from ddaebm.service.queue.batching import Batcher, BatcherStoppedError
from ddaebm.service.queue.scheduling import KINDS, Arrays, Operation
from ddaebm.service.settings import Settings

logger = logging.getLogger("ddaebm")

_URGENCY = re.compile(r"(?:^|,)\s*u=([0-7])\s*(?:$|[,;])")

Engines = Mapping[str, Engine]  # by name; the first is the default


@dataclass
class InferStatistics:
    """Of one model of the Open Inference Protocol, since the start."""

    requests: int = 0
    failures: int = 0
    images: int = 0
    last: int = 0  # milliseconds of the epoch
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("success", "fail", "queue", "infer"), 0.0))


@dataclass
class Service:
    settings: Settings
    engines: Engines  # replaced as a whole, never changed: a request keeps the one it began with
    batcher: Batcher
    metrics: Metrics
    load: Callable[[Engines], Engines]  # those that the settings name, warm; takes the loaded ones over if unchanged
    draining: bool = False
    failed: bool = False  # for good: only a new process helps
    drifts: dict[str, Drift] = field(default_factory=dict)  # by digest
    reloading: asyncio.Lock = field(default_factory=asyncio.Lock)
    reload_waits: bool = False
    statistics: dict[str, InferStatistics] = field(default_factory=dict)  # by the names that /v2 knows

    async def reload(self) -> None:
        """Load the bundles again, and serve them once all are warm; if one cannot be, the old ones stay.

        One runs at a time and one may wait: those asked for meanwhile would find what that one finds.
        """
        if self.reload_waits:
            return
        self.reload_waits = True
        async with self.reloading:
            self.reload_waits = False
            try:
                engines = await asyncio.to_thread(self.load, self.engines)
            except Exception as error:  # whatever is wrong with the new ones, the old ones are not
                known = isinstance(error, DdaebmError | OSError)
                logger.error("reload failed, the old bundles stay: %s", error, exc_info=not known)
                self.metrics.reloads.labels("failed").inc()
                return
            self.serve(engines)
            await asyncio.to_thread(give_memory_back)
            self.metrics.reloads.labels("ok").inc()

    def serve(self, engines: Engines) -> None:
        self.engines = engines
        self.batcher.keep({Operation(engine, kind) for engine in engines.values() for kind in KINDS})
        self.drifts = {
            engine.digest: self.drifts.get(engine.digest) or Drift(engine.scorer.calibration_scores)
            for engine in engines.values()
        }
        self.metrics.model_info.clear()
        self.metrics.drift.clear()
        for engine in engines.values():
            self.metrics.drift.labels(engine.name).set(self.drifts[engine.digest].log_martingale)
            self.metrics.model_info.labels(engine.name, engine.digest, engine.backend).set(1)
            logger.info("ready: %s %s on %s", engine.name, engine.digest[:12], engine.backend)

    def engine(self, name: str | None) -> Engine:
        """The named engine, or the default one.

        Raises:
            Problem: 404, naming what is loaded.
        """
        if name is None:
            return next(iter(self.engines.values()))
        if name not in self.engines:
            raise Problem(404, "unknown-model", f"no model {name[:100]!r}; loaded: {', '.join(self.engines)}")
        return self.engines[name]

    def count_scores(self, engine: Engine, scores: Scores | Explained, alpha: float) -> None:
        """What a client has sent to be scored goes into the metrics, and into the drift of the engine's model."""
        for p in scores.p_value:
            self.metrics.scored.labels(engine.name, "ood" if p <= alpha else "in").inc()
            self.metrics.p_value.labels(engine.name).observe(p)
        if drift := self.drifts.get(engine.digest):  # none if a reload took the model away meanwhile
            drift.update(scores.ood_score)
            self.metrics.drift.labels(engine.name).set(drift.log_martingale)

    def fault(self) -> str | None:
        """Why the service is not ready, or None when it is."""
        if self.draining:
            return "draining: the service is shutting down"
        if self.failed:
            return "inference threads died or hung twice; restart the service"
        if not self.batcher.alive:
            return "an inference thread died; another one is being started"
        return None

    async def run(self, request: Request, operation: Operation, rows: NDArray[Any]) -> Arrays:
        """Run `rows` on an inference thread, unless the client leaves or its deadline passes first.

        A request may run several operations one after the other, under one deadline; it is let in once.

        Raises:
            Problem: 413 more than the queue can ever hold, 429 queue full, 503 not running, 504 too late.
        """
        limit = self.settings.max_queue_images
        if len(rows) > limit:
            raise Problem(413, "too-many-images", f"{len(rows)} images at once; this server takes {limit}")
        deadline, timings = self.deadline(request), request.state.timings
        try:
            job = self.batcher.submit(
                operation, rows, deadline.left(), is_low(request), callers(request), admitted="queue" in timings
            )
        except QueueFullError as error:
            wait = {"Retry-After": str(error.retry_after)}
            why = (
                f"it would take more than {deadline.allowed:g} s"
                if error.late
                else f"the queue of {limit} images is full"
            )
            detail = f"{why}; try again in {error.retry_after} s, with the same X-Request-ID to keep your place"
            raise Problem(429, "queue-full", detail, wait) from error
        except BatcherStoppedError as error:
            raise self._stopped() from error
        reason = "cancelled"
        gone = asyncio.ensure_future(_disconnect(request))
        try:
            waiting: set[asyncio.Future[Any]] = {job.future, gone}
            await asyncio.wait(waiting, timeout=deadline.left(), return_when=asyncio.FIRST_COMPLETED)
            if job.future.done():
                arrays = job.future.result()
            elif gone.done():
                reason = "client-gone"
                raise Problem(CLIENT_GONE, "client-gone", "the client left")
            else:
                reason = "deadline"
                raise deadline.problem()
        except BatcherStoppedError as error:
            raise self._stopped() from error
        finally:
            gone.cancel()
            self.batcher.cancel(job, reason)
        timings["queue"] = timings.get("queue", 0.0) + job.started - job.submitted
        timings["infer"] = timings.get("infer", 0.0) + job.finished - job.started
        return arrays

    def _stopped(self) -> Problem:
        reason = self.fault() or "the inference thread died or hung with this request"
        return Problem(503, "not-ready", f"{reason}; try again", {"Retry-After": "1"})

    def deadline(self, request: Request) -> "Deadline":
        """That of the request, which begins when it is first asked for. Raises Problem 400: a bad header."""
        if not hasattr(request.state, "deadline"):
            request.state.deadline = Deadline(self._allowed_seconds(request))
        return cast(Deadline, request.state.deadline)

    def _allowed_seconds(self, request: Request) -> float:
        limit = self.settings.deadline_seconds
        header = request.headers.get("x-request-timeout")
        if header is None:
            return limit
        try:
            wanted = float(header)
        except ValueError:
            wanted = math.nan
        if not wanted > 0:
            raise Problem(400, "bad-timeout", "X-Request-Timeout must be a positive number of seconds")
        return min(wanted, limit)


@dataclass
class Deadline:
    """Of one request."""

    allowed: float  # seconds
    began: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        return max(0.0, self.began + self.allowed - time.monotonic())

    def shorten(self, seconds: float) -> None:
        self.allowed = min(self.allowed, seconds)

    def check(self) -> None:
        """Raises Problem 504 once it has passed."""
        if not self.left():
            raise self.problem()

    def problem(self) -> Problem:
        return Problem(504, "deadline", f"not done within {self.allowed:g} s; ask for less, or try when it is quieter")


def give_memory_back() -> None:
    """What loading took and freed: glibc would keep it in the pools of the threads that did."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def is_low(request: Request) -> bool:
    """Whether the request asks to be passed by others: `Priority: u=4` to `u=7` (RFC 9218; 3 is the default)."""
    if getattr(request.state, "low", False):
        return True
    urgency = _URGENCY.search(request.headers.get("priority", ""))
    return urgency is not None and int(urgency[1]) > 3


def callers(request: Request) -> list[str]:
    """By what a client is known again that was told to come later: its request id if it brings one, or its connection.

    Not both: requests that share a connection would take each other's turn.
    """
    request_id: str = request.state.request_id
    if request.client is None or request.headers.get("x-request-id") == request_id:
        return [request_id]
    return [request_id, f"{request.client.host} {request.client.port}"]


async def _disconnect(request: Request) -> None:
    """Returns when the client has gone; the body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def get_service(request: Request) -> Service:
    # async, or FastAPI would call it on a worker thread
    return cast(Service, request.app.state.service)


Shared = Annotated[Service, Depends(get_service)]
