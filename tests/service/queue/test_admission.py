"""Tests which work the queue accepts, and whether callers that come back when told are accepted then."""

import heapq
import math
import random

import numpy as np
import pytest

from ddaebm.service.queue.admission import LONGEST_WAIT, Admission, Cost, QueueFullError
from ddaebm.service.queue.scheduling import Arrays
from tests.service.conftest import Rows


def operation(rows: Rows) -> Arrays:
    return (rows,)


def admission(max_queue: int = 100, workers: int = 1, seconds_a_row: float = 0.1) -> Admission:
    made = Admission(max_queue, max_batch=10, workers=workers)
    for rows in (1, 5, 10):
        made.observe(operation, rows, seconds_a_row * rows)
    return made


@pytest.mark.parametrize(("a", "b"), [(0.01, 0.05), (0.2, 0.0)])
def test_the_cost_is_a_line_through_what_was_measured(a: float, b: float) -> None:
    cost, noise = Cost(), np.random.default_rng(0)
    for rows in noise.integers(1, 65, 300).tolist():
        cost.observe(rows, (a * rows + b) * noise.uniform(0.95, 1.05))
    assert cost.line == pytest.approx((a, b), rel=0.1, abs=0.03)
    assert cost.seconds(100, batch=64) == pytest.approx(100 * a + 2 * b, rel=0.1)


def test_the_cost_follows_a_machine_that_became_slower() -> None:
    cost = Cost()
    for seconds in (0.1, 0.4):
        for _ in range(200):
            cost.observe(10, seconds)
    assert cost.line == (pytest.approx(0.04, rel=0.05), pytest.approx(0.0, abs=1e-3))


def test_nothing_measured_yet_costs_nothing_and_no_call_is_ever_negative() -> None:
    cost = Cost()
    assert cost.seconds(10, 10) == 0
    cost.observe(1, 1.0)
    cost.observe(64, 0.1)  # more rows in less time: a is not negative
    assert min(cost.line) >= 0
    cost = Cost()
    cost.observe(1, 0.1)
    cost.observe(10, 5.0)  # nor is b
    assert min(cost.line) >= 0


def test_a_full_queue_refuses_and_says_when_there_will_be_room() -> None:
    rule = admission()
    rule.admit(operation, 10, {operation: 90}, 60, 0.0)
    with pytest.raises(QueueFullError) as full:
        rule.admit(operation, 30, {operation: 90}, 60, 0.0)
    assert (full.value.retry_after, full.value.late) == (3 + 1, False)  # 30 rows take 3 s, and 5 to 15 % of slack


def test_several_threads_empty_the_queue_sooner() -> None:
    with pytest.raises(QueueFullError) as full:
        admission(workers=4).admit(operation, 90, {operation: 90}, 60, 0.0)
    assert full.value.retry_after == 3  # 90 rows by four threads


def test_late_work_is_refused_at_once_and_an_empty_queue_accepts_anything() -> None:
    rule = admission()
    with pytest.raises(QueueFullError) as full:
        rule.admit(operation, 20, {operation: 50}, allowed=4, now=0.0)  # 7 s of work
    assert (full.value.retry_after, full.value.late) == (4, True)
    rule.admit(operation, 100, {}, allowed=1, now=0.0)


def test_nothing_measured_yet_means_one_second() -> None:
    with pytest.raises(QueueFullError) as full:
        Admission(100, 10, 1).admit(operation, 1, {operation: 100}, 60, 0.0)
    assert full.value.retry_after == 1


@pytest.mark.parametrize(("seconds_to_empty", "most"), [(0.1, 1), (5, 10), (20, 40), (29, 58), (40, 60), (600, 60)])
def test_callers_that_never_come_back_do_not_lengthen_the_wait(seconds_to_empty: float, most: int) -> None:
    rule = admission(seconds_a_row=seconds_to_empty / 100)
    waits, now = [], 0.0
    for _ in range(20_000):
        now += 0.001
        with pytest.raises(QueueFullError) as full:
            rule.admit(operation, 20, {operation: 100}, 3600, now)
        waits.append(full.value.retry_after)
    assert max(waits) == most <= LONGEST_WAIT
    rule.admit(operation, 20, {}, 3600, now)  # the queue is empty: all of that is forgotten
    with pytest.raises(QueueFullError) as full:
        rule.admit(operation, 20, {operation: 100}, 3600, now)
    assert full.value.retry_after <= max(1, math.ceil(1.15 * 0.2 * seconds_to_empty))


class Wave:
    """Callers that all arrive at once and come back, each a little late, when they were told, until accepted.

    The device computes `rate` rows a second; the rule believes `believed` times that.
    """

    def __init__(self, max_queue: int, seconds: float, believed: float = 1.0) -> None:
        self.max_queue, self.seconds, self.rate = max_queue, seconds, max_queue / seconds
        self.rule = admission(max_queue=max_queue, seconds_a_row=1 / (self.rate * believed))
        self.dice = random.Random(0)

    def run(self, requests: list[int], queued: float = 0.0) -> tuple[float, list[int]]:
        """Seconds until all `requests` (rows of each) are computed, and the number of tries that each took."""
        events = [(self.dice.uniform(0, 0.05), i) for i in range(len(requests))]
        heapq.heapify(events)
        clock, tries = 0.0, [0] * len(requests)
        while events:
            now, i = heapq.heappop(events)
            queued, clock = max(0.0, queued - (now - clock) * self.rate), now
            tries[i] += 1
            try:
                self.rule.admit(operation, requests[i], {operation: math.ceil(queued)}, 3600, now)
            except QueueFullError as full:
                heapq.heappush(events, (now + full.retry_after + self.dice.uniform(0, 0.2), i))
            else:
                queued += requests[i]
        return clock + queued / self.rate, tries


SIZES = {"one image": [1], "many images": [32], "mixed": [1, 8, 64]}


def requests_of(rows: int, sizes: list[int], dice: random.Random) -> list[int]:
    """Sizes that sum to `rows`, or a little less."""
    made: list[int] = []
    while sum(made) + min(sizes) <= rows:
        size = dice.choice(sizes)
        if sum(made) + size <= rows:
            made.append(size)
    return made


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("believed", [0.97, 1.0, 1.03])
@pytest.mark.parametrize("seconds", [2, 5, 20, 29])
def test_returning_callers_that_together_fit_are_all_accepted(seconds: float, believed: float, sizes: str) -> None:
    wave = Wave(640, seconds, believed)
    requests = requests_of(640, SIZES[sizes], random.Random(1))
    _, tries = wave.run(requests, queued=640.0)  # the queue is full when they come first
    assert max(tries) == 2


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("queues", [2, 3, 5, 10])
@pytest.mark.parametrize("seconds", [2, 5, 20, 29, 59])
def test_a_wave_is_done_in_little_more_than_its_size(seconds: float, queues: int, sizes: str) -> None:
    wave = Wave(640, seconds)
    requests = requests_of(queues * 640, SIZES[sizes], random.Random(2))
    taken, _ = wave.run(requests)
    assert taken / seconds <= queues + 2
    assert sum(requests) / wave.rate / taken >= 0.7


@pytest.mark.parametrize(("rows", "calls"), [(1, 1), (64, 1), (65, 2), (128, 2), (129, 3), (640, 10)])
def test_each_call_has_its_fixed_cost(rows: int, calls: int) -> None:
    cost = Cost()
    for measured in (1, 10, 64, 1, 10, 64):
        cost.observe(measured, 0.5 + 0.01 * measured)
    assert cost.seconds(rows, batch=64) == pytest.approx(0.01 * rows + 0.5 * calls)


@pytest.mark.parametrize("queued", [1, 40, 99])
def test_a_queue_may_be_filled_to_its_limit_and_no_further(queued: int) -> None:
    rule = admission(max_queue=100)
    rule.admit(operation, 100 - queued, {operation: queued}, 1e9, 0.0)
    with pytest.raises(QueueFullError):
        rule.admit(operation, 100 - queued + 1, {operation: queued}, 1e9, 0.0)
