"""One inference thread that merges waiting requests, behind a bounded queue.

The queue counts images, not requests. There is no timer: when the thread is free it takes what
waits, up to `max_batch` images of one operation. A large request is taken in pieces and goes to the
back of the queue after each, so that small ones pass between them.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger("ddaebm.batching")

Arrays = tuple[NDArray[Any], ...]
Operation = Callable[[NDArray[Any]], Arrays]  # equal operations are merged; row i out belongs to row i in


class QueueFullError(Exception):
    """No room for the images; `retry_after` is whole seconds until the queue may be empty."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"retry after {retry_after} s")
        self.retry_after = retry_after


class BatcherStoppedError(Exception):
    """The inference thread died or hung, or is being shut down."""


@dataclass(eq=False)
class Job:
    """One request's rows, and where its results go."""

    operation: Operation
    rows: NDArray[Any]  # (n, ...)
    future: "asyncio.Future[Arrays]"
    submitted: float = field(default_factory=time.perf_counter)
    started: float = 0.0  # first taken, and last delivered: perf_counter seconds
    finished: float = 0.0
    taken: int = 0
    parts: list[Arrays] = field(default_factory=list)

    @property
    def left(self) -> int:
        return len(self.rows) - self.taken


@dataclass(eq=False)
class Call:
    """One batch that is computed: rows of one job or more."""

    pieces: list[tuple[Job, NDArray[Any]]]
    began: float = field(default_factory=time.perf_counter)

    @property
    def jobs(self) -> list[Job]:
        return [job for job, _ in self.pieces]


class Batcher:
    """Owns the queue and the thread. `submit` and `cancel` are for the event loop's thread.

    Args:
        max_batch: rows of one call of an operation.
        max_queue: rows that may wait.
        on_batch: told the operation, its number of rows and its seconds, on the inference thread.
    """

    def __init__(
        self, max_batch: int, max_queue: int, on_batch: Callable[[Operation, int, float], None] | None = None
    ) -> None:
        self.max_batch, self.max_queue, self.on_batch = max_batch, max_queue, on_batch
        self.queued = 0  # rows waiting
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._seconds_per_row = 0.0  # moving average; 0 until something was measured
        self._call: Call | None = None  # under way
        self._thread = threading.Thread()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def busy_seconds(self) -> float:
        """How long the call under way has taken by now."""
        call = self._call
        return time.perf_counter() - call.began if call else 0.0

    def restart(self) -> None:
        """Another thread in place of one that died or hangs, for the jobs that wait.

        A thread cannot be killed: one that hangs is left to itself, and what it may still return is thrown away. The
        jobs of its batch are told that they are lost.
        """
        self._give_up(self._call)
        with self._changed:
            self.start()
            self._changed.notify_all()  # the old one, if it lives and waits: it has been replaced

    def submit(self, operation: Operation, rows: NDArray[Any]) -> Job:
        """Queue `rows`; await the job's future for the operation's arrays, in order.

        Raises:
            QueueFullError: the rows do not fit beside those waiting.
            BatcherStoppedError: nothing will run them.
        """
        job = Job(operation, rows, asyncio.get_running_loop().create_future())
        with self._changed:
            if self._closing or not self.alive:
                raise BatcherStoppedError
            if self.queued + len(rows) > self.max_queue:
                raise QueueFullError(max(1, math.ceil(self.queued * self._seconds_per_row)))
            self._jobs.append(job)
            self.queued += len(rows)
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Drop what of `job` has not run; nothing happens to a finished one."""
        self._drop(job)
        job.future.cancel()

    def close(self, timeout: float) -> bool:
        """Run what waits, then end the thread; false if it did not end within `timeout` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        with self._changed:  # nobody will run what a thread that died or hangs has left
            stranded = list(self._jobs)
            self._jobs.clear()
            self.queued = 0
        _deliver([(job, BatcherStoppedError()) for job in stranded])
        return not self._thread.is_alive()

    def _run(self) -> None:
        call = None
        try:
            while call := self._take():
                self._execute(call)
        except BaseException:
            logger.critical("the inference thread died", exc_info=True)
            self._give_up(call)
            raise

    def _finish(self, call: Call | None) -> bool:
        """Nothing is under way any more; false if `call` has been given up meanwhile."""
        with self._changed:
            if call is None or self._call is not call:
                return False
            self._call = None
            return True

    def _give_up(self, call: Call | None) -> None:
        if call and self._finish(call):
            for job in call.jobs:
                self._drop(job)
            _deliver([(job, BatcherStoppedError()) for job in call.jobs])

    def _take(self) -> Call | None:
        """The next batch; None when another thread has taken over, or when closing and nothing waits."""
        me = threading.current_thread()
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closing or self._thread is not me)
            if self._thread is not me or not self._jobs:
                return None
            pieces: list[tuple[Job, NDArray[Any]]] = []
            room = self.max_batch
            passed: list[Job] = []
            while self._jobs and room:
                job = self._jobs.popleft()
                if pieces and job.operation != pieces[0][0].operation:
                    passed.append(job)
                    continue
                rows = job.rows[job.taken : job.taken + room]
                pieces.append((job, rows))
                job.taken += len(rows)
                room -= len(rows)
            self._jobs.extendleft(reversed(passed))
            if pieces[-1][0].left:  # only the last can have found no room
                self._jobs.append(pieces[-1][0])
            self.queued -= self.max_batch - room
            self._call = Call(pieces)
            return self._call

    def _execute(self, call: Call) -> None:
        pieces, began = call.pieces, call.began
        for job in call.jobs:
            job.started = job.started or began
        operation, count = pieces[0][0].operation, sum(len(rows) for _, rows in pieces)
        try:
            arrays = operation(np.concatenate([rows for _, rows in pieces]))
            if any(len(array) != count for array in arrays):
                raise RuntimeError(f"{count} rows in, {[len(array) for array in arrays]} out")
        except Exception as error:  # an engine's fault ends these requests, not the thread
            logger.exception("inference failed")
            if self._finish(call):
                for job in call.jobs:
                    self._drop(job)
                _deliver([(job, error) for job in call.jobs])
            return
        ended = time.perf_counter()
        if not self._finish(call):
            return
        self._observe(operation, count, ended - began)
        done: list[tuple[Job, Arrays | Exception]] = []
        start = 0
        for job, rows in pieces:
            job.parts.append(tuple(array[start : start + len(rows)] for array in arrays))
            start += len(rows)
            if not job.left:
                job.finished = ended
                done.append((job, tuple(np.concatenate(column) for column in zip(*job.parts, strict=True))))
        _deliver(done)

    def _drop(self, job: Job) -> None:
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
                self.queued -= job.left

    def _observe(self, operation: Operation, rows: int, seconds: float) -> None:
        per_row = seconds / rows
        self._seconds_per_row += 0.1 * (per_row - self._seconds_per_row) if self._seconds_per_row else per_row
        if self.on_batch:
            self.on_batch(operation, rows, seconds)


def _deliver(outcomes: Sequence[tuple[Job, Arrays | Exception]]) -> None:
    """Settle futures on their event loop: one hand-over for the whole batch."""
    if not outcomes:
        return

    def settle() -> None:
        for job, outcome in outcomes:
            if job.future.done():  # cancelled meanwhile
                continue
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)

    loop = outcomes[0][0].future.get_loop()
    if not loop.is_closed():  # a drain that ran out of time leaves nobody to tell
        loop.call_soon_threadsafe(settle)
