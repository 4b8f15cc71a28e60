"""The decoder processes, and the queue of images before them.

A decoder cannot be interrupted, and no check of a file finds all that are slow. So images run in processes that are
killed when an image takes longer than any of its size does, and replaced when the next one comes. What is surely quick
is decoded in the service itself (`light`): starting and feeding a process would cost more than decoding it.
"""

import concurrent.futures
import heapq
import itertools
import logging
import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np

from ddaebm.model.errors import ImageFormatError
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.decode import Decoded
from ddaebm.model.images.formats import PixelArray
from ddaebm.service.decoding import worker
from ddaebm.service.decoding.worker import ask

logger = logging.getLogger("ddaebm.decoding")

MEMORY = 320 * 2**20  # bytes that one process may allocate; a raw TIFF of 16 megapixels in RGBA needs 250
_START_SECONDS = 30.0  # for a process to import what it needs, on a busy machine
# Time for one image: ten times what the slowest format takes at the service's lowest share of a core.
_SECONDS, _SECONDS_PER_PIXEL = 1.0, 0.5e-6
_STUCK_SECONDS = 5.0  # over its time, for a process that does not even die
_PASSED = 1e-6  # seconds per pixel by which smaller images may pass a larger one that came before
_LEAST_WEIGHT = 100_000  # pixels
_FIRST_PACE = 0.05e-6  # seconds per pixel, until something was measured


class DecodersFullError(Exception):
    """Too many pixels wait. `retry_after` is in whole seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"retry after {retry_after} s")
        self.retry_after = retry_after


class DecoderUnavailableError(Exception):
    """No process could be started, or the service is shutting down."""


@dataclass(eq=False)
class Job:
    """One image."""

    content: bytes | PixelArray  # an image file, or uint8 pixels (H, W, C)
    contract: Contract
    max_pixels: int
    pixels: int  # as stated by its header
    result: "concurrent.futures.Future[Decoded]" = field(default_factory=concurrent.futures.Future)

    @property
    def weight(self) -> int:
        """Pixels that it counts for; small images are mostly overhead."""
        return max(self.pixels, _LEAST_WEIGHT)

    @property
    def seconds(self) -> float:
        """Time that it may take."""
        return _SECONDS + _SECONDS_PER_PIXEL * self.pixels


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
        self._slots = [_Slot(on_death) for _ in range(processes)]
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

    def _start(self, slot: "_Slot") -> None:
        slot.thread = threading.Thread(target=self._run, args=(slot,), name="decoder", daemon=True)
        slot.thread.start()

    def _run(self, slot: "_Slot") -> None:
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


class _Slot:
    """A place for one process, which is replaced when it died or was killed."""

    thread: threading.Thread  # feeds it

    def __init__(self, on_death: Callable[[], None]) -> None:
        self.on_death = on_death
        self.broken = False  # the last start failed
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._due = math.inf  # when the running image must be done, monotonic
        self._killed = False  # because it was not
        self._closed = False

    @property
    def overtime(self) -> float:
        """Seconds by which the running image is late; negative if it is not."""
        return time.monotonic() - self._due

    def decode(self, job: Job) -> Decoded:
        """The image of `job`.

        Raises:
            ImageError: it cannot be decoded, takes too long, or made the process die twice.
            DecoderUnavailableError: no process could be started.
        """
        for _ in range(2):  # again where the process died, which need not be the fault of this image
            if self._closed:
                raise DecoderUnavailableError("the service is shutting down")
            connection = self._connection or self._open()
            self._killed, self._due = False, time.monotonic() + job.seconds
            try:
                return _read(self._exchange(connection, job), job.contract)
            except (OSError, EOFError) as error:
                self.end()
                if self._closed:
                    continue
                self.on_death()
                if self._killed:
                    detail = f"decoding takes over {job.seconds:.1f} s, as no ordinary image of its size does"
                    raise ImageFormatError(f"{detail}; save it again, for example as PNG") from error
                logger.warning("a decoder process died; starting another one")
            finally:
                self._due = math.inf
        raise ImageFormatError("the image makes the decoder fail; save it again, for example as PNG")

    def _exchange(self, connection: Connection, job: Job) -> bytes:
        content = job.content
        connection.send_bytes(ask(job.contract, job.max_pixels, None if isinstance(content, bytes) else content.shape))
        connection.send_bytes(content if isinstance(content, bytes) else content.tobytes())
        return connection.recv_bytes()

    def kill_late(self) -> None:
        if self.overtime > 0:
            self._killed = True
            self.kill()

    def close(self) -> None:
        self._closed = True
        self.kill()

    def kill(self) -> None:
        """End the process at once; its thread then finds the connection closed."""
        if process := self._process:
            process.kill()

    def end(self) -> None:
        """Kill the process if it runs, and forget it."""
        self.kill()
        if self._process:
            self._process.wait()
        if self._connection:
            self._connection.close()
        self._process = self._connection = None

    def _open(self) -> Connection:
        try:
            self._connection = self._start()
        except (OSError, EOFError) as error:
            self.end()
            self.broken = True
            raise DecoderUnavailableError(f"no decoder process can be started: {error}") from error
        self.broken = False
        return self._connection

    def _start(self) -> Connection:
        """Raises OSError or EOFError if the process does not start, or does not answer."""
        ours, theirs = Pipe()
        # With the path of the service, wherever it was started: `-m` would put the working directory first.
        run = f"from {worker.__name__} import main; main({theirs.fileno()}, {MEMORY})"
        code = f"import sys; sys.path[:] = {sys.path!r}; {run}"
        with ExitStack() as stack:
            stack.callback(ours.close)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", code], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                    env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                )  # fmt: skip
            if not ours.poll(_START_SECONDS) or ours.recv_bytes() != worker.READY:
                raise EOFError("it did not answer")
            stack.pop_all()
        return ours


def _read(reply: bytes, contract: Contract) -> Decoded:
    """The image, or its error."""
    kind, rest = reply[:1], reply[1:]
    if kind in worker.ERRORS:
        raise worker.ERRORS[kind](rest.decode())
    return Decoded(np.frombuffer(rest, np.uint8).reshape(contract.shape), kind == worker.RESIZED)


def _fail(job: Job, error: BaseException) -> None:
    if not job.result.done():
        job.result.set_exception(error)
