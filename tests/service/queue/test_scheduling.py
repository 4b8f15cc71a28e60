"""Tests how batches are filled: fairness between sizes, priorities, operations. No threads, no clock but arrivals."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from ddaebm.service.queue.scheduling import PATIENCE, Arrays, Job, Operation, Waiting
from tests.service.conftest import FakeEngine, Rows


def sampling(rows: Rows) -> Arrays:
    return (rows,)


def scoring(rows: Rows) -> Arrays:
    return (rows,)


sampling.weight = scoring.weight = 1  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The loop that futures belong to; it never runs."""
    made = asyncio.new_event_loop()
    asyncio.set_event_loop(made)
    yield made
    made.close()
    asyncio.set_event_loop(None)


def make(count: int, operation: Operation = sampling, low: bool = False, age: float = 0.0) -> Job:
    job = Job(operation, np.arange(count), asyncio.get_event_loop_policy().get_event_loop().create_future(), low)
    job.submitted -= age
    return job


def waiting_of(*jobs: Job) -> Waiting:
    waiting = Waiting()
    for job in jobs:
        waiting.add(job)
    return waiting


def take(waiting: Waiting, size: int) -> dict[Job, int]:
    """Rows of each job in the next batch."""
    taken: dict[Job, int] = {}
    for piece in waiting.take(size):
        assert piece.rows.tolist() == list(range(piece.start, piece.start + len(piece.rows)))
        taken[piece.job] = taken.get(piece.job, 0) + len(piece.rows)
    return taken


def test_small_jobs_pass_between_the_pieces_of_a_large_one_that_goes_on_all_the_same() -> None:
    large, small = make(100, age=3), [make(1, age=1) for _ in range(10)]
    waiting = waiting_of(large, *small)
    assert take(waiting, 16) == {large: 8, **dict.fromkeys(small[:8], 1)}
    assert take(waiting, 16) == {large: 14, **dict.fromkeys(small[8:], 1)}
    assert waiting.rows == {sampling: 78}


def test_equal_jobs_are_served_in_the_order_of_their_arrival_one_after_the_other() -> None:
    first, second = make(20, age=2), make(20, age=1)
    waiting = waiting_of(first, second)
    assert take(waiting, 16) == {first: 16}
    assert take(waiting, 16) == {first: 4, second: 12}


def test_low_priority_fills_what_the_others_leave() -> None:
    low, high = make(8, low=True, age=1), make(5)
    waiting = waiting_of(low, high)
    assert take(waiting, 4) == {high: 4}
    assert take(waiting, 4) == {high: 1, low: 3}
    assert take(waiting, 4) == {low: 4}


def test_low_priority_does_not_starve() -> None:
    low = make(100, low=True, age=PATIENCE + 1)
    waiting = waiting_of(low)
    for _ in range(10):
        for _ in range(16):
            waiting.add(make(1))
        assert take(waiting, 16)[low] == 8


def test_a_large_job_does_not_starve_beside_small_ones_without_end() -> None:
    large = make(80, age=1)
    waiting = waiting_of(large)
    batches = 0
    while large.left:
        for _ in range(16):
            waiting.add(make(1))
        take(waiting, 16)
        batches += 1
    assert batches == 10


def test_operations_share_the_time_of_the_device_not_the_number_of_batches() -> None:
    waiting = waiting_of(make(10_000, sampling), make(10_000, scoring))
    seconds = {sampling: 0.3, scoring: 0.1}
    turns = {sampling: 0, scoring: 0}
    for _ in range(80):
        (job,) = take(waiting, 16)
        turns[job.operation] += 1  # type: ignore[index]
        waiting.charge(job.operation, seconds[job.operation])  # type: ignore[index]
    assert turns == {sampling: 20, scoring: 60}


def test_an_operation_that_nobody_asked_for_has_saved_nothing_up() -> None:
    waiting = waiting_of(make(1_000, sampling))
    for _ in range(50):
        take(waiting, 4)
        waiting.charge(sampling, 1.0)
    waiting.add(make(100, scoring))
    turns = []
    for _ in range(8):
        (job,) = take(waiting, 4)
        turns.append(job.operation)
        waiting.charge(job.operation, 1.0)
    assert turns.count(scoring) == turns.count(sampling) == 4


def test_an_operation_with_low_priority_alone_waits_for_the_other() -> None:
    low, high = make(8, scoring, low=True), make(8, sampling)
    waiting = waiting_of(low, high)
    waiting.charge(sampling, 100.0)
    assert [take(waiting, 4) for _ in range(3)] == [{high: 4}, {high: 4}, {low: 4}]
    old = make(8, scoring, low=True, age=PATIENCE + 1)
    waiting = waiting_of(old, high := make(8, sampling))
    waiting.charge(sampling, 1.0)
    assert take(waiting, 4) == {old: 4}


def test_one_job_of_normal_priority_is_enough_for_its_operation_s_turn() -> None:
    low, high, other = make(8, scoring, low=True), make(2, scoring), make(8, sampling)
    waiting = waiting_of(low, high, other)
    waiting.charge(sampling, 1.0)
    assert take(waiting, 4) == {high: 2, low: 2}


def test_what_is_removed_is_counted_once() -> None:
    job, other = make(10), make(1)
    waiting = waiting_of(job, other)
    take(waiting, 4)
    assert waiting.remove(job) == 10 - job.taken
    assert waiting.remove(job) == 0
    assert waiting.all_rows == other.left
    assert waiting.clear() == ([other] if other.left else [])
    assert not waiting
    assert waiting.all_rows == 0


@pytest.mark.parametrize(("age", "first"), [(4.9, False), (5.1, True)])
def test_low_priority_counts_as_five_seconds_younger(age: float, first: bool) -> None:
    low, high = make(100, low=True, age=age), make(100)
    assert (low in take(waiting_of(low, high), 2)) == first  # of two rows, one goes to the job that waited longest
    other = make(100, scoring)
    waiting = waiting_of(low := make(100, sampling, low=True, age=age), other)
    waiting.charge(scoring, 1.0)
    assert take(waiting, 2) == ({low: 2} if first else {other: 2})


def test_small_jobs_of_low_priority_do_not_pass_larger_ones_of_normal_priority() -> None:
    oldest, low, high = make(8, age=1), make(1, low=True), make(6)
    assert take(waiting_of(oldest, low, high), 8) == {oldest: 4, high: 4}
    assert take(waiting_of(make(9, age=1), make(3), small := make(2)), 8)[small] == 2


def test_the_job_that_has_waited_longest_gets_the_larger_half() -> None:
    oldest = make(50, age=1)
    assert take(waiting_of(oldest, *(make(1) for _ in range(9))), 7)[oldest] == 4


def large(rows: Rows) -> Arrays:
    return (rows,)


large.weight = 16  # type: ignore[attr-defined]


def test_a_large_image_takes_the_room_of_several() -> None:
    job = make(10, large)
    waiting = waiting_of(job, make(3))
    assert waiting.rows == {large: 160, sampling: 3}
    assert waiting.all_rows == 163
    assert take(waiting, 64) == {job: 4}
    assert waiting.rows[large] == 96
    assert waiting.remove(job) == 6
    assert waiting.all_rows == 3


def test_an_image_larger_than_a_batch_runs_alone() -> None:
    job = make(2, large)
    waiting = waiting_of(job)
    assert [take(waiting, 4), take(waiting, 4), bool(waiting)] == [{job: 1}, {job: 1}, False]


@pytest.mark.parametrize(("side", "weight"), [(None, 1), (32, 1), (64, 1), (128, 4), (256, 16), (1024, 256)])
def test_an_image_weighs_as_much_as_its_pixels(side: int | None, weight: int) -> None:
    engine = FakeEngine()
    engine.side = side
    assert Operation(engine, "score").weight == Operation(engine, "explain").weight == weight
    assert Operation(engine, "sample").weight == 1
