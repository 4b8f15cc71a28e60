"""The queue and its thread, on real threads: rows in, the same rows' results out."""

import asyncio
import random
import threading
from typing import Any

import numpy as np
import pytest

from ddaebm.service.queue.admission import QueueFullError
from ddaebm.service.queue.batching import Batcher, BatcherStoppedError
from ddaebm.service.queue.scheduling import Arrays
from tests.service.conftest import PATIENCE, Rows, Squares, in_thread, occupy, rows, run, wait_until


def test_waiting_requests_are_merged_into_one_call(batcher: Batcher, operation: Squares) -> None:
    async def test() -> None:
        await occupy(batcher, operation)
        jobs = [batcher.submit(operation, rows(*values)) for values in ([1, 2], [3], [4, 5, 6])]
        assert batcher.queued == 6
        operation.reopen()
        results = await asyncio.gather(*(job.future for job in jobs))
        assert operation.calls == [[0], [1, 2, 3, 4, 5, 6]]
        assert [squares.tolist() for squares, _ in results] == [[1, 4], [9], [16, 25, 36]]
        assert [negated.tolist() for _, negated in results] == [[-1, -2], [-3], [-4, -5, -6]]
        assert batcher.queued == 0

    run(test())


def test_a_lone_request_does_not_wait_for_company(batcher: Batcher, operation: Squares) -> None:
    async def test() -> None:
        squares, _ = await batcher.submit(operation, rows(7)).future
        assert squares.tolist() == [49]
        assert operation.calls == [[7]]

    run(test())


def test_a_batch_is_filled_to_the_brim_and_no_further(batcher: Batcher, operation: Squares) -> None:
    async def test() -> None:
        await occupy(batcher, operation)
        sizes = [3, 4, 3, 3, 2]
        jobs = [batcher.submit(operation, rows(*range(10 * i, 10 * i + n))) for i, n in enumerate(sizes)]
        operation.reopen()
        results = await asyncio.gather(*(job.future for job in jobs))
        assert [len(call) for call in operation.calls] == [1, 8, 7]
        for i, ((squares, _), n) in enumerate(zip(results, sizes, strict=True)):
            assert squares.tolist() == [value**2 for value in range(10 * i, 10 * i + n)]

    run(test())


def test_a_large_job_runs_in_pieces_and_a_small_one_passes_between_them(batcher: Batcher, operation: Squares) -> None:
    order: list[str] = []

    async def test() -> None:
        await occupy(batcher, operation)
        large = batcher.submit(operation, rows(*range(100, 118)))
        small = batcher.submit(operation, rows(1))
        for name, job in (("large", large), ("small", small)):
            job.future.add_done_callback(lambda _, name=name: order.append(name))
        operation.reopen()
        squares, _ = await large.future
        assert squares.tolist() == [n**2 for n in range(100, 118)]
        assert (await small.future)[0].tolist() == [1]
        assert [len(call) for call in operation.calls] == [1, 8, 8, 3]
        assert 1 in operation.calls[1]

    run(test())
    assert order == ["small", "large"]


def test_operations_are_never_mixed(batcher: Batcher, operation: Squares) -> None:
    other = Squares()

    async def test() -> None:
        await occupy(batcher, operation)
        turns = [operation, other, operation, other, operation]
        jobs = [batcher.submit(turn, rows(i)) for i, turn in enumerate(turns, start=1)]
        operation.reopen()
        results = await asyncio.gather(*(job.future for job in jobs))
        assert operation.calls == [[0], [1, 3, 5]]
        assert other.calls == [[2, 4]]
        assert [int(squares[0]) for squares, _ in results] == [1, 4, 9, 16, 25]

    run(test())


def test_two_hundred_concurrent_jobs_each_get_their_own_rows() -> None:
    sizes = random.Random(0)
    shapes: list[int] = []

    def operation(values: Rows) -> Arrays:
        shapes.append(len(values))
        return values * 3, np.stack([values, -values], axis=1)

    operation.weight = 1  # type: ignore[attr-defined]

    def also(values: Rows) -> Arrays:
        shapes.append(len(values))
        return values * 5, np.stack([values, values], axis=1)

    also.weight = 1  # type: ignore[attr-defined]

    async def client(batcher: Batcher, first: int, size: int) -> None:
        mine = np.arange(first, first + size)
        chosen, factor, sign = ((operation, 3, -1), (also, 5, 1))[first % 2]
        await asyncio.sleep(0)
        multiplied, pairs = await batcher.submit(chosen, mine).future
        assert multiplied.tolist() == (factor * mine).tolist()
        assert pairs.tolist() == [[n, sign * n] for n in mine.tolist()]

    async def test() -> None:
        batcher = Batcher(max_batch=16, max_queue=20_000)
        batcher.start()
        await asyncio.gather(*(client(batcher, 1001 * i, sizes.randint(1, 70)) for i in range(200)))
        assert batcher.queued == 0
        assert await asyncio.to_thread(batcher.close, PATIENCE)

    run(test())
    assert max(shapes) <= 16


def test_the_bound_counts_rows_and_the_answer_says_when_to_come_back(batcher: Batcher, operation: Squares) -> None:
    async def test() -> None:
        await occupy(batcher, operation)
        jobs = [batcher.submit(operation, rows(*range(10))), batcher.submit(operation, rows(*range(9)))]
        with pytest.raises(QueueFullError) as full:
            batcher.submit(operation, rows(1, 2))
        assert isinstance(full.value.retry_after, int)
        assert full.value.retry_after >= 1
        jobs.append(batcher.submit(operation, rows(1)))  # exactly full
        assert batcher.queued == 20
        operation.reopen()
        await asyncio.gather(*(job.future for job in jobs))
        assert batcher.queued == 0

    run(test())


def test_a_job_says_when_it_was_queued_begun_and_done(batcher: Batcher, operation: Squares) -> None:
    async def test() -> None:
        job = batcher.submit(operation, rows(*range(20)))
        await job.future
        assert 0 < job.submitted <= job.started < job.finished

    run(test())


@pytest.mark.parametrize("surplus", [-1, 1])
def test_results_that_do_not_match_the_rows_reach_nobody(batcher: Batcher, surplus: int) -> None:
    def misaligned(values: Rows) -> Arrays:
        return (np.resize(values, len(values) + surplus),)

    misaligned.weight = 1  # type: ignore[attr-defined]

    async def test() -> None:
        job = batcher.submit(misaligned, rows(1, 2))
        (outcome,) = await asyncio.gather(job.future, return_exceptions=True)
        assert isinstance(outcome, Exception), outcome
        assert (await batcher.submit(Squares(), rows(4)).future)[0].tolist() == [16]  # and the thread goes on

    run(test())


class Reports:
    def __init__(self) -> None:
        self.batches: list[tuple[object, int, float]] = []
        self.drops: list[tuple[str, int]] = []

    def computed(self, *report: Any) -> None:
        self.batches.append(report)

    def dropped(self, *report: Any) -> None:
        self.drops.append(report)


def test_each_call_is_reported_with_its_rows_and_seconds_and_each_drop_with_its_reason(operation: Squares) -> None:
    reports = Reports()

    async def test() -> None:
        batcher = Batcher(8, 20, observer=reports)
        batcher.start()
        await batcher.submit(operation, rows(*range(11))).future
        await occupy(batcher, operation)
        abandoned = batcher.submit(operation, rows(*range(12)))
        batcher.cancel(abandoned, "client-gone")
        batcher.cancel(abandoned, "deadline")
        operation.reopen()
        assert await asyncio.to_thread(batcher.close, PATIENCE)

    run(test())
    assert [(reported is operation, count) for reported, count, _ in reports.batches] == [(True, n) for n in (8, 3, 1)]
    assert all(seconds > 0 for _, _, seconds in reports.batches)
    assert reports.drops == [("client-gone", 12)]


def test_several_threads_share_what_waits_and_put_a_large_job_together_in_order() -> None:
    rest = threading.Event()
    calls: list[int] = []

    def operation(values: Rows) -> Arrays:
        calls.append(len(values))
        if values[0] == 0:  # the first part is done last
            assert rest.wait(PATIENCE)
        elif values[-1] == 31:
            rest.set()
        return (values**2,)

    operation.weight = 1  # type: ignore[attr-defined]

    async def test() -> None:
        batcher = Batcher(max_batch=64, max_queue=64, workers=2)
        batcher.start()
        (squares,) = await batcher.submit(operation, rows(*range(32))).future
        assert squares.tolist() == [n**2 for n in range(32)]
        assert await asyncio.to_thread(batcher.close, PATIENCE)

    run(test())
    assert calls == [16, 8, 4, 4]  # halves of what waits, down to what is not worth halving


def test_a_free_thread_leaves_a_busy_one_its_share() -> None:
    operation, busy = Squares(), Squares()

    async def test() -> None:
        batcher = Batcher(max_batch=64, max_queue=64, workers=2)
        batcher.start()
        await occupy(batcher, busy)
        await occupy(batcher, operation)
        jobs = [batcher.submit(operation, rows(i)) for i in range(1, 11)]
        operation.reopen()
        await asyncio.gather(*(job.future for job in jobs[:5]))
        busy.reopen()
        await asyncio.gather(*(job.future for job in jobs))
        assert await asyncio.to_thread(batcher.close, PATIENCE)

    run(test())
    assert operation.calls[:2] == [[0], [1, 2, 3, 4, 5]]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_one_of_two_threads_that_dies_takes_its_batch_along_and_the_other_goes_on() -> None:
    operation, fatal = Squares(), Squares()
    fatal.fault = SystemExit()

    async def test() -> None:
        batcher = Batcher(max_batch=8, max_queue=20, workers=2)
        batcher.start()
        with pytest.raises(BatcherStoppedError):
            await batcher.submit(fatal, rows(1)).future
        await in_thread(lambda: wait_until(lambda: not batcher.alive))
        assert (await batcher.submit(operation, rows(3)).future)[0].tolist() == [9]
        batcher.restart()
        assert batcher.alive
        assert await asyncio.to_thread(batcher.close, PATIENCE)

    run(test())
