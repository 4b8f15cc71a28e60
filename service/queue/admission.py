"""Which work the queue accepts, and when the rest should come back.

Work is refused where the queue has no room for it or where it could not finish in time. `Retry-After` is the measured
time until the queue has room, after those refused before: callers that come back when told arrive at the pace at which
the queue empties, so that those which fit together are all accepted. Nobody has a reserved place, and nothing is
remembered of a caller. The wait is at most 60 s and at most twice the time to empty a full queue, whatever came before.
"""

import math
import random
from collections.abc import Collection, Mapping

from ddaebm.service.queue.scheduling import Operation

LONGEST_WAIT = 60.0  # seconds
_SLACK = (1.05, 1.15)  # factors of the wait: costs are estimates, and callers must not come back in step


class QueueFullError(Exception):
    """Refused work. `retry_after` is in whole seconds; `late` tells that time was short and not room."""

    def __init__(self, retry_after: int, late: bool) -> None:
        super().__init__(f"retry after {retry_after} s")
        self.retry_after, self.late = retry_after, late


class Cost:
    """Seconds of one call of n rows, a·n + b, by least squares over the calls with exponentially fading weights."""

    _KEPT = 0.98  # factor on the weights of all earlier calls at each new call

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
        a = min(max(a, 0.0), t / n)  # keeps b = t - a·n from being negative
        return a, t - a * n

    def seconds(self, rows: int, batch: int) -> float:
        """Time of `rows` in calls of `batch` rows."""
        a, b = self.line
        return a * rows + b * math.ceil(rows / batch)


class Admission:
    """The rule for a queue of `max_queue` rows that `workers` threads empty in batches of `max_batch`."""

    def __init__(self, max_queue: int, max_batch: int, workers: int) -> None:
        self.max_queue, self.max_batch, self.workers = max_queue, max_batch, workers
        self.costs: dict[Operation, Cost] = {}
        self._booked = 0.0  # when all those who were told to come back would have room, on the caller's clock

    def keep(self, operations: Collection[Operation]) -> None:
        """Forget the cost of other operations, or a model that was unloaded would stay in memory."""
        self.costs = {operation: cost for operation, cost in self.costs.items() if operation in operations}

    def observe(self, operation: Operation, rows: int, seconds: float) -> None:
        self.costs.setdefault(operation, Cost()).observe(rows, seconds)

    def seconds(self, waiting: Mapping[Operation, int]) -> float:
        """Time until all of `waiting` has been computed."""
        total = sum(self.costs[op].seconds(rows, self.max_batch) for op, rows in waiting.items() if op in self.costs)
        return total / self.workers

    def admit(
        self, operation: Operation, rows: int, waiting: Mapping[Operation, int], allowed: float, now: float
    ) -> None:
        """Accept `rows` beside `waiting`, or refuse them.

        Args:
            allowed: seconds in which the result is of use.
            now: seconds on any clock that does not go back.

        Raises:
            QueueFullError: no room, or it would take longer than `allowed`. An empty queue accepts anything.
        """
        queued = sum(waiting.values())
        if not queued:
            self._booked = 0.0
            return
        backlog, mine = self.seconds(waiting), self.seconds({operation: rows})
        too_many = queued + rows - self.max_queue  # rows
        too_late = backlog + mine - allowed  # seconds
        if too_many > 0:
            until_room = backlog * min(1.0, too_many / queued)
        elif too_late > 0:
            until_room = too_late
        else:
            return
        until_empty = backlog * self.max_queue / queued  # of a full queue of the same mix
        raise QueueFullError(self._wait(until_room, mine, min(LONGEST_WAIT, 2 * until_empty), now), late=too_many <= 0)

    def _wait(self, until_room: float, mine: float, longest: float, now: float) -> int:
        """Whole seconds after which work that takes `mine` seconds finds room."""
        turn = max(now + until_room, self._booked + mine)
        wait = (turn - now) * random.uniform(*_SLACK)
        if wait <= longest:
            self._booked = turn
        else:  # more callers wait than two queues hold: spread them, and book nothing for them
            wait = random.uniform(longest / 2, longest)
        return max(1, math.ceil(min(wait, longest)))
