"""A bounded queue and the inference threads that empty it.

The queue counts images, not requests, and a large image as several (`scheduling.Operation.weight`). There is no timer:
a free thread takes its share of the waiting images, at most `max_batch`. `scheduling` decides what goes into a batch,
`admission` what goes into the queue.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ddaebm.service.queue.admission import Admission
from ddaebm.service.queue.scheduling import Arrays, Job, Operation, Piece, Waiting

logger = logging.getLogger("ddaebm.batching")

_SMALLEST_SHARE = 4  # rows; splitting a batch further among the threads costs more than it gains


class BatcherStoppedError(Exception):
    """An inference thread died or hung, or the batcher is shutting down."""


class Observer(Protocol):
    """Receives events, on the thread on which they happen."""

    def computed(self, operation: Operation, rows: int, seconds: float) -> None:
        """A batch of `rows` was computed in `seconds`."""

    def dropped(self, reason: str, rows: int) -> None:
        """Queued rows will not be computed."""


@dataclass(eq=False)
class Call:
    """A batch that is being computed."""

    pieces: list[Piece]
    began: float = field(default_factory=time.perf_counter)

    @property
    def jobs(self) -> list[Job]:
        return [piece.job for piece in self.pieces]


class Batcher:
    """Owns the queue and the threads. Call `submit` and `cancel` from the event loop only.

    Args:
        max_batch: most rows in one call of an operation, by their weight.
        max_queue: most rows in the queue, by their weight.
        workers: number of threads.
    """

    def __init__(self, max_batch: int, max_queue: int, workers: int = 1, observer: Observer | None = None) -> None:
        self.max_batch, self.workers, self.observer = max_batch, workers, observer
        self.admission = Admission(max_queue, max_batch, workers)
        self._waiting = Waiting()
        self._changed = threading.Condition()
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._calls: dict[threading.Thread, Call] = {}  # running now

    def start(self) -> None:
        self._threads = [self._start() for _ in range(self.workers)]

    @property
    def queued(self) -> int:
        """Rows in the queue."""
        with self._changed:
            return self._waiting.all_rows

    @property
    def alive(self) -> bool:
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    @property
    def busy_seconds(self) -> float:
        """Seconds that the longest running call has taken so far."""
        now = time.perf_counter()
        return max((now - call.began for call in list(self._calls.values())), default=0.0)

    def restart(self, limit: float = float("inf")) -> None:
        """Replace threads that died, or whose call has taken over `limit` seconds. Queued jobs are kept.

        A thread cannot be killed. A hung one is abandoned and its result is discarded; the jobs of its batch fail.
        """
        now = time.perf_counter()
        for place, thread in enumerate(self._threads):
            call = self._calls.get(thread)
            if thread.is_alive() and not (call and now - call.began > limit):
                continue
            with self._changed:
                self._give_up(thread, call)  # first, or the new thread would continue its jobs
                self._threads[place] = self._start()
                self._changed.notify_all()  # wakes the old thread if it is alive and waiting, so that it ends

    def keep(self, operations: Collection[Operation]) -> None:
        """Forget what was measured of operations other than these."""
        with self._changed:
            self.admission.keep(operations)

    def submit(
        self,
        operation: Operation,
        rows: NDArray[Any],
        allowed: float = float("inf"),
        low: bool = False,
        admitted: bool = False,
    ) -> Job:
        """Queue `rows`; await the job's future for the operation's arrays, in order.

        Args:
            allowed: seconds in which the answer is of use.
            low: other jobs may pass it.
            admitted: continues work that was accepted before, and so is not refused half-way.

        Raises:
            QueueFullError: the rows do not fit beside those waiting, or would be late.
            BatcherStoppedError: nothing will run them.
        """
        job = Job(operation, rows, asyncio.get_running_loop().create_future(), low)
        with self._changed:
            if self._closing or not any(thread.is_alive() for thread in self._threads):
                raise BatcherStoppedError
            if not admitted:
                self.admission.admit(
                    operation, len(rows) * operation.weight, self._waiting.rows, allowed, job.submitted
                )
            self._waiting.add(job)
            self._changed.notify()
        return job

    def cancel(self, job: Job, reason: str = "cancelled") -> None:
        """Drop the rows of `job` that have not run. A finished job is not affected."""
        self._drop(job, reason)
        job.future.cancel()

    def close(self, timeout: float) -> bool:
        """Compute the queue, then end the threads. Returns False if they did not end within `timeout` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        with self._changed:  # jobs that a dead or hung thread has left: nothing will run them
            stranded = self._waiting.clear()
        _deliver([(job, BatcherStoppedError()) for job in stranded])
        return not any(thread.is_alive() for thread in self._threads)

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="inference", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        me = threading.current_thread()
        call = None
        try:
            while call := self._take(me):
                self._execute(me, call)
        except BaseException:
            logger.critical("an inference thread died", exc_info=True)
            self._give_up(me, call)
            raise

    def _finish(self, thread: threading.Thread, call: Call) -> bool:
        """Mark `call` as no longer running. Returns False if it was abandoned meanwhile."""
        with self._changed:
            if self._calls.get(thread) is not call:
                return False
            del self._calls[thread]
            return True

    def _give_up(self, thread: threading.Thread, call: Call | None) -> None:
        if call and self._finish(thread, call):
            self._fail(call, BatcherStoppedError())

    def _fail(self, call: Call, error: Exception) -> None:
        for job in call.jobs:
            self._drop(job, "failed")
        _deliver([(job, error) for job in call.jobs])

    def _take(self, me: threading.Thread) -> Call | None:
        """The next batch, or None if this thread was replaced or the closing batcher has an empty queue."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing or self._replaced(me))
            if self._replaced(me) or not self._waiting:
                return None
            # Divide by all workers, not only idle ones; otherwise the idle ones drain the queue and the busy ones
            # starve. Divide all rows, not those of one operation: another thread computes the other operations.
            share = -(-self._waiting.all_rows // self.workers)
            self._calls[me] = call = Call(self._waiting.take(min(self.max_batch, max(share, _SMALLEST_SHARE))))
            if self._waiting:
                self._changed.notify()  # submit wakes one thread per job; wake another one while work remains
            return call

    def _replaced(self, thread: threading.Thread) -> bool:
        return bool(self._threads) and thread not in self._threads

    def _execute(self, me: threading.Thread, call: Call) -> None:
        operation, count = call.jobs[0].operation, sum(len(piece.rows) for piece in call.pieces)
        for job in call.jobs:
            job.started = job.started or call.began
        try:
            arrays = operation(np.concatenate([piece.rows for piece in call.pieces]))
            if any(len(array) != count for array in arrays):
                raise RuntimeError(f"{count} rows in, {[len(array) for array in arrays]} out")
        except Exception as error:  # an error in the engine fails these requests, not the thread
            logger.exception("inference failed")
            if self._finish(me, call):
                self._fail(call, error)
            return
        ended = time.perf_counter()
        if not self._finish(me, call):
            return
        with self._changed:
            self._waiting.charge(operation, ended - call.began)
            self.admission.observe(operation, count * operation.weight, ended - call.began)
            done = _hand_out(call, arrays, ended)
        if self.observer:
            self.observer.computed(operation, count, ended - call.began)
        _deliver([(job, job.result()) for job in done])

    def _drop(self, job: Job, reason: str) -> None:
        with self._changed:
            rows = self._waiting.remove(job)
        if rows and self.observer:
            self.observer.dropped(reason, rows)


def _hand_out(call: Call, arrays: Arrays, ended: float) -> list[Job]:
    """Store each job's rows. Returns the jobs that are complete."""
    done, first = [], 0
    for job, start, rows in call.pieces:
        job.parts[start] = tuple(array[first : first + len(rows)] for array in arrays)
        job.missing -= len(rows)
        first += len(rows)
        if not job.missing:
            job.finished = ended
            done.append(job)
    return done


def _deliver(outcomes: Sequence[tuple[Job, Arrays | Exception]]) -> None:
    """Settle futures on their event loop, with one call for the whole batch."""
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
    if not loop.is_closed():  # closed if the drain ran out of time; nobody waits then
        loop.call_soon_threadsafe(settle)
