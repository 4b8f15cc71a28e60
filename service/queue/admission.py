"""Which work is taken in, and when the rest should come again.

A request is refused where the queue has no room, or where it could not be done in its time. What it is told, as
`Retry-After`, is meant: each refused request gets a later turn than the one before, at the pace of the device, and who
comes at his turn finds room of which nobody else gets any. A caller is known again by its request id or its connection.
The fewer come, the more turns are given, for as long as the rush lasts: those of the next one may be of other habits.
"""

import heapq
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ddaebm.service.queue.scheduling import Operation

_EARLY, _LATE = 0.1, 2.0  # seconds around its turn in which a caller finds room
_MOST_PROMISES = 10_000
_LONGEST = 600.0  # seconds; further away nothing is promised


class QueueFullError(Exception):
    """Not taken in; `retry_after` is whole seconds, `late` that time was short and not room."""

    def __init__(self, retry_after: int, late: bool) -> None:
        super().__init__(f"retry after {retry_after} s")
        self.retry_after, self.late = retry_after, late


class Cost:
    """Seconds of one call of n rows, a·n + b: least squares over the calls, of which old ones are forgotten."""

    _KEPT = 0.98  # of the weight of all earlier calls, at each call

    def __init__(self) -> None:
        self._w = self._n = self._t = self._nn = self._nt = 0.0

    def observe(self, rows: int, seconds: float) -> None:
        kept = self._KEPT
        self._w = kept * self._w + 1
        self._n = kept * self._n + rows
        self._t = kept * self._t + seconds
        self._nn = kept * self._nn + rows * rows
        self._nt = kept * self._nt + rows * seconds

    @property
    def line(self) -> tuple[float, float]:
        """(a, b), neither negative; zeros until something was measured."""
        if not self._w:
            return 0.0, 0.0
        n, t = self._n / self._w, self._t / self._w
        variance = self._nn / self._w - n * n
        a = (self._nt / self._w - n * t) / variance if variance > 1e-9 * n * n else t / n
        a = min(max(a, 0.0), t / n)  # so that b = t - a·n is not negative
        return a, t - a * n

    def seconds(self, rows: int, batch: int) -> float:
        """Of `rows` in calls of `batch`."""
        a, b = self.line
        return a * rows + b * math.ceil(rows / batch)


@dataclass(eq=False)
class _Promise:
    due: float
    callers: Sequence[str]
    seconds: float  # of the device
    rush: int


class Promises:
    """Who was told to come again, and when.

    Args:
        at_once: rows that may come within a second, since all who are told the same one may come at its beginning.
    """

    def __init__(self, at_once: float = math.inf) -> None:
        self.at_once = at_once
        self.returning = 1.0  # share of those told that come, in this rush
        self._rush, self._refused = 0, math.inf  # when the last one was refused, while a rush is on
        self._next = 0.0  # turn of the next one
        self._owed = 0.0  # seconds of the device, to all who may still come
        self._of: dict[str, _Promise] = {}
        self._turns: list[tuple[float, int, _Promise]] = []  # a heap, of those too that are settled
        self._count = itertools.count()
        self._rows: dict[int, int] = {}  # promised, by the second

    def __len__(self) -> int:
        return len(self._turns)

    def rest(self, now: float) -> None:
        """Nothing waits. If nobody was refused lately the rush is over, and what it taught of its callers with it.

        Of those who are still out as many are expected as have come of the others.
        """
        if now > self._refused + _LATE:
            self._expire(now)
            self._next = min(self._next, now + self.returning * self._owed)
            self._rows = {second: math.ceil(self.returning * rows) for second, rows in self._rows.items()}
            self.returning, self._rush, self._refused = 1.0, self._rush + 1, math.inf

    def claim(self, callers: Sequence[str], now: float) -> bool:
        """Whether it is the turn of one of `callers`, who has no other."""
        self._expire(now)
        for promise in filter(None, map(self._of.get, callers)):
            if promise.due <= now + _EARLY:
                self._settle(promise)
                self.returning += 0.05 * (1 - self.returning)
                return True
        return False

    def make(self, callers: Sequence[str], rows: int, seconds: float, soonest: float, now: float) -> int:
        """A turn for work that takes the device `seconds`, not before `soonest`: whole seconds from `now`."""
        for old in filter(None, map(self._of.get, callers)):
            self._settle(old)  # came too early, and is refused again
        self._next = max(self._next, soonest)
        self._refused = now
        wait = max(1, math.ceil(self._next - now))
        while (there := self._rows.get(int(now + wait), 0)) and there + rows > self.at_once:
            wait += 1
        self._next = max(self._next, now + wait - 1) + seconds * self.returning
        if callers and wait <= _LONGEST and len(self) < _MOST_PROMISES:
            promise = _Promise(now + wait, callers, seconds, self._rush)
            self._owed += seconds
            self._rows[int(promise.due)] = there + rows
            self._of.update(dict.fromkeys(callers, promise))
            heapq.heappush(self._turns, (promise.due, next(self._count), promise))
        return wait

    def _expire(self, now: float) -> None:
        for second in [second for second in self._rows if second < now - 1]:
            del self._rows[second]
        while self._turns and self._turns[0][0] < now - _LATE:
            _, _, promise = heapq.heappop(self._turns)
            if self._settle(promise) and promise.rush == self._rush:
                self.returning -= 0.05 * self.returning

    def _settle(self, promise: _Promise) -> bool:
        """Whether it was still open."""
        mine = [caller for caller in promise.callers if self._of.get(caller) is promise]
        for caller in mine:
            del self._of[caller]
        if mine:
            self._owed -= promise.seconds
        return bool(mine)


class Admission:
    """The rule for a queue of `max_queue` rows that `workers` threads empty in batches of `max_batch`.

    Who comes at his turn is let in with as many rows again in the queue.
    """

    def __init__(self, max_queue: int, max_batch: int, workers: int) -> None:
        self.max_queue, self.max_batch, self.workers = max_queue, max_batch, workers
        self.costs: dict[Operation, Cost] = {}
        self.promises = Promises(at_once=max_queue / 2)  # those of two seconds may fall together

    def keep(self, operations: Collection[Operation]) -> None:
        """Forget what others cost: a model that was unloaded must not be held."""
        self.costs = {operation: cost for operation, cost in self.costs.items() if operation in operations}

    def observe(self, operation: Operation, rows: int, seconds: float) -> None:
        self.costs.setdefault(operation, Cost()).observe(rows, seconds)

    def seconds(self, waiting: Mapping[Operation, int]) -> float:
        """Until all of `waiting` has been computed."""
        total = sum(self.costs[op].seconds(rows, self.max_batch) for op, rows in waiting.items() if op in self.costs)
        return total / self.workers

    def admit(
        self,
        operation: Operation,
        rows: int,
        waiting: Mapping[Operation, int],
        allowed: float,
        callers: Sequence[str],
        now: float,
    ) -> None:
        """Raises QueueFullError where `rows` have no room beside `waiting`, or would take longer than `allowed`."""
        queued, mine = sum(waiting.values()), self.seconds({operation: rows})
        if not queued:
            self.promises.rest(now)
        promised = self.promises.claim(callers, now)
        backlog = self.seconds(waiting)
        short = queued + rows - self.max_queue * (2 if promised else 1)  # rows
        late = backlog + mine - allowed  # seconds
        if queued and short > 0:  # a queue that is empty takes anything that it can hold
            soonest = now + backlog * min(1.0, short / queued)
        elif queued and late > 0 and not promised:
            soonest = now + late
        else:
            return
        raise QueueFullError(self.promises.make(callers, rows, mine, soonest, now), late=short <= 0)
