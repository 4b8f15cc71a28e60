"""A place for one decoder process: it is started when an image needs it, fed, watched and replaced."""

import concurrent.futures
import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

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
_STARVED = 4.0  # factor on it while the process gets less than a core
LEAST_WEIGHT = 100_000  # pixels


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
        return max(self.pixels, LEAST_WEIGHT)

    @property
    def seconds(self) -> float:
        """Time that it may take."""
        return _SECONDS + _SECONDS_PER_PIXEL * self.pixels


class Slot:
    """A place for one process, which is replaced when it died or was killed."""

    thread: threading.Thread  # feeds it

    def __init__(self, on_death: Callable[[], None]) -> None:
        self.on_death = on_death
        self.broken = False  # the last start failed
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._job: Job | None = None  # the running image
        self._began = self._cpu = 0.0  # when it began: monotonic seconds, and processor seconds of the process
        self._killed = False  # because it was not
        self._closed = False

    @property
    def overtime(self) -> float:
        """Seconds by which the running image is late; negative if it is not."""
        job, passed = self._job, time.monotonic() - self._began
        if job is None:
            return -math.inf
        # On a busy machine the process gets a part of a core. If it has used a tenth of the time that passed, it is
        # not stuck, and may take its time in processor seconds.
        starved = passed / 10 < self._cpu_seconds() - self._cpu < job.seconds
        return passed - job.seconds * (_STARVED if starved else 1)

    def _cpu_seconds(self) -> float:
        """Processor seconds of the process so far, or 0 where the system does not tell."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text() if self._process else ""
            user, system = fields.rpartition(")")[2].split()[11:13]
        except (OSError, ValueError):  # it has just ended, or this is not Linux
            return 0.0
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

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
            self._killed = False
            self._cpu, self._began, self._job = self._cpu_seconds(), time.monotonic(), job
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
                self._job = None
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
    return Decoded(np.frombuffer(rest, np.uint8).reshape(contract.row_shape), kind == worker.RESIZED)
