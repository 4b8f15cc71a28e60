"""Runs a request's work on the inference threads, under its deadline, while its client waits."""

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from numpy.typing import NDArray

from ddaebm.model.errors import ImageError
from ddaebm.model.images.decode import Decoded
from ddaebm.service.decoding.processes import Decoders, DecodersFullError
from ddaebm.service.decoding.slot import DecoderUnavailableError, Job
from ddaebm.service.http.context import Deadline, RequestContext
from ddaebm.service.http.errors import CLIENT_GONE, Problem
from ddaebm.service.queue.admission import QueueFullError
from ddaebm.service.queue.batching import Batcher, BatcherStoppedError
from ddaebm.service.queue.scheduling import Arrays, Operation
from ddaebm.service.settings import Settings


class Runner:
    """Runs work of requests on the batcher and the decoders, and tells whether the service is ready."""

    def __init__(self, settings: Settings, batcher: Batcher, decoders: Decoders) -> None:
        self.settings, self.batcher, self.decoders = settings, batcher, decoders
        self.draining = False
        self.failed = False  # permanent: only a new process helps

    def fault(self) -> str | None:
        """Why the service is not ready, or None when it is."""
        if self.draining:
            return "draining: the service is shutting down"
        if self.failed:
            return "inference threads died or hung twice; restart the service"
        if not self.batcher.alive:
            return "an inference thread died; another one is being started"
        return self.decoders.fault()

    async def run(self, request: Request, context: RequestContext, operation: Operation, rows: NDArray[Any]) -> Arrays:
        """Run `rows` on an inference thread, unless the client leaves or its deadline passes first.

        A request may run several operations one after the other under one deadline; only the first can be refused.

        Raises:
            Problem: 413 more than the queue can ever hold, 429 queue full, 503 not running, 504 too late.
        """
        limit = self.settings.max_queue_images
        most = limit // operation.weight
        if len(rows) > most:
            raise Problem(413, "too-many-images", f"{len(rows)} images at once; this server takes {most} of this size")
        deadline = context.start(request.headers, self.settings.deadline_seconds)
        try:
            job = self.batcher.submit(operation, rows, deadline.left(), context.low, context.admitted)
        except QueueFullError as error:
            wait = {"Retry-After": str(error.retry_after)}
            slow = f"it would take more than {deadline.allowed:g} s"
            why = slow if error.late else f"the queue of {limit} images is full"
            raise Problem(429, "queue-full", f"{why}; try again in {error.retry_after} s", wait) from error
        except BatcherStoppedError as error:
            raise self._stopped() from error
        context.admitted = True
        reason = "cancelled"
        try:
            await _while_client_waits(request, deadline, job.future)
            arrays = job.future.result()
        except BatcherStoppedError as error:
            raise self._stopped() from error
        except Problem as problem:
            reason = problem.slug
            raise
        finally:
            self.batcher.cancel(job, reason)
        timings = context.timings
        timings["queue"] = timings.get("queue", 0.0) + job.started - job.submitted
        timings["infer"] = timings.get("infer", 0.0) + job.finished - job.started
        return arrays

    async def decode(
        self, request: Request, context: RequestContext, jobs: Sequence[Job]
    ) -> list[Decoded | ImageError]:
        """Decode `jobs` in the decoder processes, unless the client leaves or its deadline passes first.

        Raises:
            Problem: 429 too many pixels wait, 503 no process runs, 504 too late.
        """
        deadline = context.start(request.headers, self.settings.deadline_seconds)
        try:
            self.decoders.submit(jobs)
        except DecodersFullError as error:
            wait = {"Retry-After": str(error.retry_after)}
            context.reason = "decoders_full"
            why = f"over {self.settings.max_decode_pixels} pixels wait to be decoded"
            raise Problem(429, "decoders-full", f"{why}; try again in {error.retry_after} s", wait) from error
        except DecoderUnavailableError as error:
            raise self._stopped() from error
        results = asyncio.gather(*(asyncio.wrap_future(job.result) for job in jobs), return_exceptions=True)
        try:
            await _while_client_waits(request, deadline, results)
        finally:
            results.cancel()
        outcomes: list[Decoded | ImageError] = []
        for outcome in results.result():
            if isinstance(outcome, DecoderUnavailableError):
                raise self._stopped() from outcome
            if not isinstance(outcome, Decoded | ImageError):
                raise outcome
            outcomes.append(outcome)
        return outcomes

    def _stopped(self) -> Problem:
        reason = self.fault() or "what ran this request has stopped"
        return Problem(503, "not-ready", f"{reason}; try again", {"Retry-After": "1"})


async def _while_client_waits(request: Request, deadline: Deadline, result: "asyncio.Future[Any]") -> None:
    """Wait for `result`.

    Raises:
        Problem: 499 the client left, 504 the deadline passed.
    """
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({result, gone}, timeout=deadline.left(), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
    if not result.done():
        raise Problem(CLIENT_GONE, "client-gone", "the client left") if gone.done() else deadline.problem()


async def _disconnect(request: Request) -> None:
    """Wait until the client disconnects. The body must have been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
