"""The decoder processes, and the queue of images before them.

A decoder cannot be interrupted, and no check of a file finds all that are slow. So images run in processes that are
killed when an image takes longer than any of its size does, and replaced when the next one comes. What is surely quick
is decoded in the service itself (`light`): starting and feeding a process would cost more than decoding it.
"""

import heapq
import itertools
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence

from ddaebm.service.decoding.slot import DecoderUnavailableError, Job, Slot

logger = logging.getLogger("ddaebm.decoding")

_STUCK_SECONDS = 5.0  # over its time, for a process that does not even die
_PASSED = 1e-6  # seconds per pixel by which smaller images may pass a larger one that came before
_FIRST_PACE = 0.05e-6  # seconds per pixel, until something was measured


class DecodersFullError(Exception):
    """Too many pixels wait. `retry_after` is in whole seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"retry after {retry_after} s")
        self.retry_after = retry_after


class Decoders:
    """Owns the processes, each with a thread that feeds it. A process starts when the first image needs it.

    Args:
        processes: number of processes.
        max_pixels: most pixels that may wait; a single request is accepted when none do.
        on_death: called when a process died or was killed, on the thread that finds it.
    """

    def __init__(self, processes: int, max_pixels: int, on_death: Callable[[], None] = lambda: None) -> None:
        self.max_pixels = max_pixels
        self._changed = threading.Condition()
        self._waiting: list[tuple[float, int, Job]] = []  # a heap: turn, number, job
        self._count = itertools.count()
        self._pace = _FIRST_PACE
        self._closing = False
        self._slots = [Slot(on_death) for _ in range(processes)]
        for slot in self._slots:
            self._start(slot)

    @property
    def waiting_pixels(self) -> int:
        """The pixels of all images in the queue."""
        with self._changed:
            return sum(job.weight for _, _, job in self._waiting if not job.result.done())

    def fault(self) -> str | None:
        """Why no image can be decoded, or None."""
        if all(slot.broken for slot in self._slots):
            return "no decoder process can be started"
        if all(slot.overtime > _STUCK_SECONDS for slot in self._slots):
            return "all decoder processes are stuck"
        return None

    def tend(self) -> None:
        """Kill processes whose image is late, and replace threads that died. Call this a few times a second."""
        for slot in self._slots:
            slot.kill_late()
            if not slot.thread.is_alive() and not self._closing:
                logger.critical("a thread of the decoders died; starting another one")
                slot.end()
                self._start(slot)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue the images of one request; their results are set later.

        Raises:
            DecodersFullError: the pixels do not fit beside those waiting.
            DecoderUnavailableError: the service is shutting down.
        """
        with self._changed:
            if self._closing:
                raise DecoderUnavailableError
            self._waiting = [item for item in self._waiting if not item[2].result.done()]  # clients that left
            heapq.heapify(self._waiting)
            waiting = self.waiting_pixels
            if waiting and waiting + sum(job.weight for job in jobs) > self.max_pixels:
                wait = self._pace * waiting / len(self._slots) * random.uniform(1.0, 1.5)
                raise DecodersFullError(min(60, max(1, math.ceil(wait))))
            for job in jobs:
                turn = time.monotonic() + _PASSED * job.pixels
                heapq.heappush(self._waiting, (turn, next(self._count), job))
            self._changed.notify(len(jobs))

    def close(self, timeout: float) -> bool:
        """Kill the processes and fail what waits. Returns False if a thread did not end within `timeout` seconds."""
        with self._changed:
            self._closing = True
            left, self._waiting = self._waiting, []
            self._changed.notify_all()
        for _, _, job in left:
            _fail(job, DecoderUnavailableError())
        for slot in self._slots:
            slot.close()
        end = time.monotonic() + timeout
        for slot in self._slots:
            slot.thread.join(max(0.0, end - time.monotonic()))
        return not any(slot.thread.is_alive() for slot in self._slots)

    def _start(self, slot: Slot) -> None:
        slot.thread = threading.Thread(target=self._run, args=(slot,), name="decoder", daemon=True)
        slot.thread.start()

    def _run(self, slot: Slot) -> None:
        while job := self._take():
            if not job.result.set_running_or_notify_cancel():  # its client left, or its deadline passed
                continue
            began = time.monotonic()
            try:
                job.result.set_result(slot.decode(job))
            except BaseException as error:
                _fail(job, error)
                if not isinstance(error, Exception):
                    raise
            else:
                pace = (time.monotonic() - began) / job.weight
                self._pace += 0.1 * (pace - self._pace)
        slot.end()

    def _take(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            return None if self._closing else heapq.heappop(self._waiting)[2]


def _fail(job: Job, error: BaseException) -> None:
    if not job.result.done():
        job.result.set_exception(error)
