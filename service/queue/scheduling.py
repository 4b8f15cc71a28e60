"""Who runs next, and in which company. No threads and no locks here: `service.queue.batching` has them.

A batch holds rows of one operation. Half of it goes to the job that has waited longest, the rest to those that have
the fewest rows left: small requests pass between the pieces of a large one, and nothing starves. Work of low priority
counts as having come `PATIENCE` seconds later, and fills what the others leave. Operations, and so models and the two
kinds of work, share the time of the device: the one that has had least of it is next.
"""

import asyncio
import heapq
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.engine import Engine

Arrays = tuple[NDArray[Any], ...]
Kind = Literal["sample", "score", "explain"]
KINDS: tuple[Kind, ...] = get_args(Kind)

PATIENCE = 5.0  # seconds by which work of low priority may be passed


@dataclass(frozen=True)
class Operation:
    """One kind of work of one model. Requests for equal operations share batches."""

    engine: Engine
    kind: Kind

    def __call__(self, rows: NDArray[Any]) -> Arrays:
        """Results of `rows` (B, ...): arrays whose row i belongs to row i."""
        method: Callable[[NDArray[Any]], NDArray[Any] | Arrays] = getattr(self.engine, self.kind)
        result = method(rows)
        return result if isinstance(result, tuple) else (result,)


@dataclass(eq=False)
class Job:
    """One request's rows, and where its results go."""

    operation: Operation
    rows: NDArray[Any]  # (n, ...)
    future: "asyncio.Future[Arrays]"
    low: bool = False  # its priority
    submitted: float = field(default_factory=time.perf_counter)
    started: float = 0.0  # first taken, and last computed: perf_counter seconds
    finished: float = 0.0
    taken: int = 0
    missing: int = field(init=False)  # rows that have not been computed
    parts: dict[int, Arrays] = field(default_factory=dict)  # by their first row

    def __post_init__(self) -> None:
        self.missing = len(self.rows)

    @property
    def left(self) -> int:
        return len(self.rows) - self.taken

    def result(self) -> Arrays:
        """What was asked for, in order, once nothing is missing."""
        parts = [self.parts[start] for start in sorted(self.parts)]
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


class Piece(NamedTuple):
    """Rows of one job that are computed in one batch."""

    job: Job
    start: int
    rows: NDArray[Any]


class Waiting:
    """The jobs that have rows left, by operation."""

    def __init__(self) -> None:
        self.rows: dict[Operation, int] = {}  # that wait
        self._jobs: dict[Operation, list[Job]] = {}  # in the order of their arrival
        self._used: dict[Operation, float] = {}  # device seconds of those that wait, counted from when they came

    def __bool__(self) -> bool:
        return bool(self._jobs)

    @property
    def all_rows(self) -> int:
        return sum(self.rows.values())

    def add(self, job: Job) -> None:
        operation = job.operation
        if operation not in self._jobs:
            # An operation that nobody asked for has saved nothing up.
            self._used[operation] = min(self._used.values(), default=0.0)
            self._jobs[operation], self.rows[operation] = [], 0
        self._jobs[operation].append(job)
        self.rows[operation] += job.left

    def remove(self, job: Job) -> int:
        """Forget what of `job` is left; how many rows that was."""
        if not job.left or job not in self._jobs.get(job.operation, []):
            return 0
        self._jobs[job.operation].remove(job)
        self.rows[job.operation] -= job.left
        self._tidy(job.operation)
        return job.left

    def clear(self) -> list[Job]:
        """Forget all; what they were."""
        jobs = [job for jobs in self._jobs.values() for job in jobs]
        for part in (self._jobs, self._used, self.rows):
            part.clear()
        return jobs

    def charge(self, operation: Operation, seconds: float) -> None:
        """`operation` has had the device for so long."""
        if operation in self._used:
            self._used[operation] += seconds

    def take(self, room: int) -> list[Piece]:
        """The next batch, of at most `room` rows."""
        now = time.perf_counter()

        def turn(operation: Operation) -> tuple[bool, float]:
            jobs = self._jobs[operation]
            return all(job.low and now - job.submitted < PATIENCE for job in jobs), self._used[operation]

        operation = min(self._jobs, key=turn)
        jobs = self._jobs[operation]
        oldest = min(jobs, key=lambda job: job.submitted + job.low * PATIENCE)
        # No more than `room` of them can get a row.
        smallest = heapq.nsmallest(room, jobs, key=lambda job: (job.low, job.left))
        pieces = []
        for job, most in [(oldest, math.ceil(room / 2)), *((job, room) for job in smallest)]:
            count = min(most, room, job.left)
            if count:
                pieces.append(Piece(job, job.taken, job.rows[job.taken : job.taken + count]))
                job.taken += count
                room -= count
                self.rows[operation] -= count
        self._jobs[operation] = [job for job in jobs if job.left]
        self._tidy(operation)
        return pieces

    def _tidy(self, operation: Operation) -> None:
        if not self._jobs[operation]:
            del self._jobs[operation], self._used[operation], self.rows[operation]
