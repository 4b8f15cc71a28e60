"""How jobs end otherwise than well: cancelled, failed, closed, or with the thread dead."""

import asyncio

import pytest

from ddaebm.service.queue.batching import Batcher, BatcherStoppedError
from tests.service.conftest import PATIENCE, Squares, in_thread, occupy, rows, run, wait_until


def test_a_cancelled_job_frees_its_room_and_is_not_computed(batcher: Batcher, operation: Squares) -> None:
    async def test() -> None:
        await occupy(batcher, operation)
        abandoned = batcher.submit(operation, rows(*range(100, 120)))
        batcher.cancel(abandoned)
        batcher.cancel(abandoned)  # twice does no harm
        assert batcher.queued == 0
        kept = batcher.submit(operation, rows(3))
        operation.reopen()
        assert (await kept.future)[0].tolist() == [9]
        assert operation.calls == [[0], [3]]
        assert abandoned.future.cancelled()

    run(test())


def test_cancelling_a_large_job_half_way_drops_the_other_half(batcher: Batcher, operation: Squares) -> None:
    async def test() -> None:
        operation.shut()
        large = batcher.submit(operation, rows(*range(20)))
        await in_thread(operation.wait_for_call)
        assert batcher.queued == 12
        batcher.cancel(large)
        assert batcher.queued == 0
        operation.reopen()
        assert (await batcher.submit(operation, rows(2)).future)[0].tolist() == [4]
        assert operation.calls == [list(range(8)), [2]]

    run(test())


def test_cancelling_a_finished_job_changes_nothing(batcher: Batcher, operation: Squares) -> None:
    async def test() -> None:
        job = batcher.submit(operation, rows(2))
        await job.future
        batcher.cancel(job)
        assert batcher.queued == 0
        assert job.future.result()[0].tolist() == [4]

    run(test())


def test_a_failing_call_fails_its_jobs_whole_and_no_others(batcher: Batcher, operation: Squares) -> None:
    other = Squares()

    async def test() -> None:
        first = await occupy(batcher, operation)
        operation.fault = ValueError("from the engine")
        large = batcher.submit(operation, rows(*range(15)))
        waiting = batcher.submit(other, rows(5))
        operation.gate.release()  # the first call fails …
        await in_thread(operation.wait_for_call)
        operation.fault = ValueError("again")
        operation.reopen()  # … and the large job's first piece too
        with pytest.raises(ValueError, match="from the engine"):
            await first
        with pytest.raises(ValueError, match="again"):
            await large.future
        assert (await waiting.future)[0].tolist() == [25]
        assert batcher.queued == 0
        assert operation.calls == [[0], list(range(8))]
        assert other.calls == [[5]]
        assert batcher.alive

    run(test())


def test_closing_finishes_what_waits_and_takes_no_more(batcher: Batcher, operation: Squares) -> None:
    async def test() -> None:
        first = await occupy(batcher, operation)
        waiting = batcher.submit(operation, rows(*range(20)))
        closing = asyncio.create_task(asyncio.to_thread(batcher.close, PATIENCE))
        await in_thread(lambda: wait_until(lambda: batcher._closing))
        with pytest.raises(BatcherStoppedError):
            batcher.submit(operation, rows(1))
        operation.reopen()
        assert (await first)[0].tolist() == [0]
        assert (await waiting.future)[0].tolist() == [n**2 for n in range(20)]
        assert await closing
        assert not batcher.alive

    run(test())


def test_closing_says_when_the_thread_did_not_end_in_time(batcher: Batcher, operation: Squares) -> None:
    async def test() -> None:
        running = await occupy(batcher, operation)
        assert not await asyncio.to_thread(batcher.close, 0.01)
        operation.reopen()
        await running

    run(test())


DIES = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


async def kill(batcher: Batcher, operation: Squares) -> None:
    operation.fault = SystemExit()
    operation.reopen()
    await in_thread(lambda: batcher._threads[0].join(PATIENCE))
    assert not batcher.alive


@DIES
def test_when_the_thread_dies_its_batch_is_lost_and_the_others_wait_for_another_thread(batcher: Batcher) -> None:
    operation = Squares()

    async def test() -> None:
        running = await occupy(batcher, operation)
        waiting = batcher.submit(operation, rows(*range(20)))
        await kill(batcher, operation)
        with pytest.raises(BatcherStoppedError):
            await asyncio.wait_for(running, 1)
        with pytest.raises(BatcherStoppedError):
            batcher.submit(operation, rows(1))
        assert (batcher.queued, waiting.future.done()) == (20, False)
        batcher.restart(0.05)
        assert (await waiting.future)[0].tolist() == [n**2 for n in range(20)]
        assert (await batcher.submit(operation, rows(3)).future)[0].tolist() == [9]

    run(test())


@DIES
def test_closing_tells_those_who_wait_for_a_thread_that_died(batcher: Batcher) -> None:
    operation = Squares()

    async def test() -> None:
        running = await occupy(batcher, operation)
        waiting = batcher.submit(operation, rows(1))
        await kill(batcher, operation)
        assert batcher.close(PATIENCE)
        for future in (running, waiting.future):
            with pytest.raises(BatcherStoppedError):
                await asyncio.wait_for(future, 1)
        assert batcher.queued == 0

    run(test())


def test_a_thread_that_hangs_is_replaced_and_what_it_returns_at_last_is_thrown_away(batcher: Batcher) -> None:
    stuck, well = Squares(), Squares()

    async def test() -> None:
        stuck.shut()
        lost = batcher.submit(stuck, rows(*range(20)))  # three batches
        await in_thread(stuck.wait_for_call)
        old, waiting = batcher._threads[0], batcher.submit(well, rows(4))
        await in_thread(lambda: wait_until(lambda: batcher.busy_seconds > 0.05))
        batcher.restart(0.05)
        with pytest.raises(BatcherStoppedError):
            await asyncio.wait_for(lost.future, 1)
        assert (await waiting.future)[0].tolist() == [16]
        assert batcher.busy_seconds == 0
        stuck.reopen()
        await in_thread(lambda: old.join(PATIENCE))
        assert not old.is_alive()
        assert (await batcher.submit(well, rows(5)).future)[0].tolist() == [25]
        assert len(stuck.calls) == 1  # the rest of its job went with it
        assert batcher.alive

    run(test())
