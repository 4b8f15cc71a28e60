"""Who is let in, and whether those who come again when they were told to are."""

import heapq
import math
import random

import numpy as np
import pytest

from ddaebm.service.queue.admission import Admission, Cost, Promises, QueueFullError
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


def refused(rule: Admission, caller: str, now: float, queued: int = 100) -> int:
    with pytest.raises(QueueFullError) as full:
        rule.admit(operation, 20, {operation: queued}, 60, [caller], now)
    return full.value.retry_after


def test_who_comes_at_his_turn_finds_room_that_others_do_not() -> None:
    rule = admission()
    turn = float(refused(rule, "a", now=0.0))
    refused(rule, "b", now=turn)  # the queue is as full as before
    rule.admit(operation, 20, {operation: 100}, 60, ["new", "a"], turn + 0.3)  # known by one of two
    refused(rule, "a", now=turn + 0.4)  # once


def test_a_turn_does_not_come_early_and_passes() -> None:
    rule = admission()
    turn = float(refused(rule, "a", now=0.0))
    later = refused(rule, "a", now=turn - 0.5)
    assert later > 1  # and has got another one
    refused(rule, "a", now=turn - 0.5 + later + 2.1)
    assert rule.promises.returning < 1


def test_the_room_of_those_who_come_again_is_bounded_too() -> None:
    rule = admission()
    turn = float(refused(rule, "a", now=0.0, queued=185))
    refused(rule, "a", now=turn, queued=185)


def test_no_more_come_within_a_second_than_have_room() -> None:
    rule = admission(seconds_a_row=1e-4)
    turns = [refused(rule, str(i), now=0.0) for i in range(10)]  # of 20 rows each
    assert turns == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_where_nobody_comes_again_turns_are_not_handed_out_into_the_far_future() -> None:
    promises, now = Promises(), 0.0
    for i in range(2_000):
        now += 0.01
        promises.claim([], now)
        wait = promises.make([str(i)], rows=1, seconds=0.1, soonest=now + 0.5, now=now)
    assert promises.returning < 0.2
    assert wait < 60


def test_what_a_rush_taught_of_its_callers_is_not_held_against_those_of_the_next() -> None:
    """Ten queues at once, soon after a rush from which nobody came again: each of the ten gets a turn of its own."""
    rule = admission(max_queue=100, seconds_a_row=0.01)
    last = 0
    for i in range(1_000):
        last = refused(rule, f"gone {i}", now=0.01 * i)
    assert rule.promises.returning < 0.5
    now = 20.0
    rule.admit(operation, 20, {operation: 0}, 60, ["an ordinary day"], now)
    turns = [now + refused(rule, f"new {i}", now) for i in range(50)]  # of 0.2 s each
    assert rule.promises.returning == 1  # those of before who are still out do not count
    assert last > 400
    assert turns[-1] - now < 60, "nor is the time booked by them"
    assert max(map(turns.count, turns)) == 2  # half of the queue
    queued, clock = 100.0, now
    for i, turn in enumerate(turns):
        queued, clock = max(0.0, queued - (turn - clock) * 100), turn
        rule.admit(operation, 20, {operation: math.ceil(queued)}, 60, [f"new {i}"], turn)
        queued += 20


def test_promises_are_bounded() -> None:
    promises = Promises()
    for i in range(12_000):
        promises.make([str(i)], rows=1, seconds=1e-4, soonest=0.0, now=0.0)
    assert len(promises) == 10_000
    assert len(promises._of) == 10_000


@pytest.mark.parametrize(("rows", "max_queue"), [(1, 400), (32, 128), (8, 2_000)])
def test_at_ten_times_the_capacity_nearly_all_who_come_when_told_are_served(rows: int, max_queue: int) -> None:
    """100 rows a second are done, 1,000 a second are asked for; who is refused comes once again, as told."""
    dice, rule = random.Random(0), admission(max_queue=max_queue, seconds_a_row=0.01)
    arrivals = sorted((dice.uniform(0, 20), i) for i in range(20_000 // rows))
    events = [(at, number, True) for at, number in arrivals]  # a heap: time, who, whether for the first time
    queued, clock, good, bad, served = 0.0, 0.0, 0, 0, 0.0
    while events:
        now, number, first = heapq.heappop(events)
        if now > 20:
            break
        done = min(queued, (now - clock) * 100)
        queued, served, clock = queued - done, served + done, now
        try:
            rule.admit(operation, rows, {operation: math.ceil(queued)}, 60, [str(number)], now)
        except QueueFullError as full:
            if first:
                heapq.heappush(events, (now + full.retry_after + dice.uniform(0, 0.2), number, False))
            bad += not first
        else:
            queued += rows
            good += not first
    assert good > 0.95 * (good + bad)
    assert good * rows > 200
    assert served > 0.9 * 100 * 20  # and the device was hardly ever idle
