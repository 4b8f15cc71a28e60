"""Chooses what goes into the next batch. Threads and locks are in `batching`.

A batch holds rows of one operation. Half of it goes to the job that has waited longest, and the rest to the jobs with
the fewest rows left, so that small requests pass between the pieces of a large one and nothing starves. Low-priority
work counts as if it had arrived `PATIENCE` seconds later, and fills the space that other work leaves. Operations share
the device: the one that has used the least time is next.
"""

import asyncio
import functools
import heapq
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.engine import Engine
from ddaebm.model.parallel import weight_of

Arrays = tuple[NDArray[Any], ...]
Kind = Literal["sample", "score", "explain"]
KINDS: tuple[Kind, ...] = get_args(Kind)

PATIENCE = 5.0  # seconds by which other work may pass low-priority work


@dataclass(frozen=True)
class Operation:
    """One kind of work of one model. Requests for equal operations share batches."""

    engine: Engine
    kind: Kind

    @functools.cached_property
    def weight(self) -> int:
        """Small images that a row counts for, in the limits of the queue and of a batch."""
        return 1 if self.kind == "sample" else weight_of(self.engine.side)

    def __call__(self, rows: NDArray[Any]) -> Arrays:
        """Results of `rows` (B, ...): arrays whose row i belongs to row i."""
        method: Callable[[NDArray[Any]], NDArray[Any] | Arrays] = getattr(self.engine, self.kind)
        result = method(rows)
        return result if isinstance(result, tuple) else (result,)


@dataclass(eq=False)
class Job:
    """The rows of one request, and the future for its results."""

    operation: Operation
    rows: NDArray[Any]  # (n, ...)
    future: "asyncio.Future[Arrays]"
    low: bool = False  # low priority
    submitted: float = field(default_factory=time.perf_counter)
    started: float = 0.0  # first row taken and last row computed, perf_counter seconds
    finished: float = 0.0
    taken: int = 0
    missing: int = field(init=False)  # rows not computed yet
    parts: dict[int, Arrays] = field(default_factory=dict)  # by the index of their first row

    def __post_init__(self) -> None:
        self.missing = len(self.rows)

    @property
    def left(self) -> int:
        return len(self.rows) - self.taken

    def result(self) -> Arrays:
        """The results in order, once no row is missing."""
        parts = [self.parts[start] for start in sorted(self.parts)]
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


class Piece(NamedTuple):
    """Rows of one job within one batch."""

    job: Job
    start: int
    rows: NDArray[Any]


class Waiting:
    """Jobs with rows left to take, by operation."""

    def __init__(self) -> None:
        self.rows: dict[Operation, int] = {}  # rows left to take, each counted by the operation's weight
        self._jobs: dict[Operation, list[Job]] = {}  # in order of arrival
        self._used: dict[Operation, float] = {}  # device seconds since the operation got its first waiting job

    def __bool__(self) -> bool:
        return bool(self._jobs)

    @property
    def all_rows(self) -> int:
        return sum(self.rows.values())

    def add(self, job: Job) -> None:
        operation = job.operation
        if operation not in self._jobs:
            # An operation that was idle has no credit from that time.
            self._used[operation] = min(self._used.values(), default=0.0)
            self._jobs[operation], self.rows[operation] = [], 0
        self._jobs[operation].append(job)
        self.rows[operation] += job.left * operation.weight

    def remove(self, job: Job) -> int:
        """Remove the remaining rows of `job`. Returns their number."""
        if not job.left or job not in self._jobs.get(job.operation, []):
            return 0
        self._jobs[job.operation].remove(job)
        self.rows[job.operation] -= job.left * job.operation.weight
        self._tidy(job.operation)
        return job.left

    def clear(self) -> list[Job]:
        """Remove and return all jobs."""
        jobs = [job for jobs in self._jobs.values() for job in jobs]
        for part in (self._jobs, self._used, self.rows):
            part.clear()
        return jobs

    def charge(self, operation: Operation, seconds: float) -> None:
        """Count `seconds` of device time for `operation`."""
        if operation in self._used:
            self._used[operation] += seconds

    def take(self, room: int) -> list[Piece]:
        """The next batch, of at most `room` rows by their weight, and at least one."""
        now = time.perf_counter()

        def turn(operation: Operation) -> tuple[bool, float]:
            jobs = self._jobs[operation]
            return all(job.low and now - job.submitted < PATIENCE for job in jobs), self._used[operation]

        operation = min(self._jobs, key=turn)
        room = max(1, room // operation.weight)
        jobs = self._jobs[operation]
        oldest = min(jobs, key=lambda job: job.submitted + job.low * PATIENCE)
        # At most `room` jobs can get a row.
        smallest = heapq.nsmallest(room, jobs, key=lambda job: (job.low, job.left))
        pieces = []
        for job, most in [(oldest, math.ceil(room / 2)), *((job, room) for job in smallest)]:
            count = min(most, room, job.left)
            if count:
                pieces.append(Piece(job, job.taken, job.rows[job.taken : job.taken + count]))
                job.taken += count
                room -= count
                self.rows[operation] -= count * operation.weight
        self._jobs[operation] = [job for job in jobs if job.left]
        self._tidy(operation)
        return pieces

    def _tidy(self, operation: Operation) -> None:
        if not self._jobs[operation]:
            del self._jobs[operation], self._used[operation], self.rows[operation]
