"""Who is let in, and whether those who come again when they were told to are."""

import random
from collections import deque

import numpy as np
import pytest

from service.admission import Admission, Cost, Promises, QueueFullError
from service.scheduling import Arrays
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
    rule.admit(operation, 10, {operation: 90}, 60, ["a"], 0.0)
    with pytest.raises(QueueFullError) as full:
        rule.admit(operation, 30, {operation: 90}, 60, ["b"], 0.0)
    assert (full.value.retry_after, full.value.late) == (2, False)  # 20 rows must go: 2 s


def test_several_threads_empty_the_queue_sooner() -> None:
    with pytest.raises(QueueFullError) as full:
        admission(workers=4).admit(operation, 90, {operation: 90}, 60, ["b"], 0.0)
    assert full.value.retry_after == 2


def test_what_would_be_late_is_refused_at_once_and_an_idle_service_tries_anything() -> None:
    rule = admission()
    with pytest.raises(QueueFullError) as full:
        rule.admit(operation, 20, {operation: 50}, allowed=4, callers=["a"], now=0.0)  # 7 s of work
    assert (full.value.retry_after, full.value.late) == (3, True)
    rule.admit(operation, 100, {}, allowed=1, callers=["b"], now=0.0)


def test_who_comes_again_in_time_finds_room_that_others_do_not() -> None:
    rule = admission()
    with pytest.raises(QueueFullError) as full:
        rule.admit(operation, 20, {operation: 100}, 60, ["a", "host 1"], 0.0)
    turn = float(full.value.retry_after)
    with pytest.raises(QueueFullError):  # it is kept for another
        rule.admit(operation, 20, {operation: 80}, 60, ["b"], turn)
    rule.admit(operation, 20, {operation: 80}, 60, ["c", "host 1"], turn + 0.3)  # known by its connection
    rule.admit(operation, 20, {operation: 80}, 60, ["d"], turn + 0.4)  # and nothing is kept any more


def test_a_turn_is_kept_for_a_while_and_no_longer() -> None:
    rule = admission()
    with pytest.raises(QueueFullError) as full:
        rule.admit(operation, 20, {operation: 100}, 60, ["a"], 0.0)
    turn = float(full.value.retry_after)
    rule.admit(operation, 20, {operation: 80}, 60, ["b"], turn + 2.1)
    assert rule.promises.reserved == 0
    assert len(rule.promises) == 0


def test_where_nobody_comes_again_turns_are_not_handed_out_into_the_far_future() -> None:
    promises, now = Promises(), 0.0
    for i in range(2_000):
        now += 0.01
        promises.claim([], now)
        wait = promises.make([str(i)], rows=1, seconds=0.1, soonest=now + 0.5, now=now)
    assert promises.returning < 0.2
    assert wait < 60


def test_promises_are_bounded() -> None:
    promises = Promises()
    for i in range(12_000):
        promises.make([str(i)], rows=1, seconds=1e-4, soonest=0.0, now=0.0)
    assert len(promises) == 10_000
    assert len(promises._of) == 10_000


def test_at_ten_times_the_capacity_nearly_all_who_come_when_told_are_served() -> None:
    """100 rows a second are done, 1,000 requests a second come; each that is refused comes once again, as told."""
    dice, rule = random.Random(0), admission(max_queue=400, seconds_a_row=0.01)
    arrivals = [(dice.uniform(0, 20), str(i), True) for i in range(20_000)]
    events = deque(sorted(arrivals))
    back: list[tuple[float, str, bool]] = []
    queued, clock, good, bad, served = 0.0, 0.0, 0, 0, 0
    while events or back:
        use = back and (not events or back[0] < events[0])
        now, name, first = back.pop(0) if use else events.popleft()
        if now > 25:
            break
        done = min(queued, (now - clock) * 100)
        queued, served, clock = queued - done, served + done, now
        try:
            rule.admit(operation, 1, {operation: int(queued)}, 60, [name], now)
        except QueueFullError as full:
            if first:
                back.append((now + full.retry_after + dice.uniform(0, 0.2), name, False))
                back.sort()
            bad += not first
        else:
            queued += 1
            good += not first
    assert good / (good + bad) > 0.95
    assert good > 500
    assert served > 0.95 * 100 * 20  # and the device was hardly ever idle
