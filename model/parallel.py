"""Use all cores by concurrent calls of one thread each.

This is faster than one call with many threads, because the threads of one call often wait for each other.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of the control group: "QUOTA PERIOD" in microseconds, or "max PERIOD"

T = TypeVar("T")
R = TypeVar("R")

SMALL = 64 * 64  # pixels of an image up to which it counts as one


def usable_cores() -> int:
    """Number of cores this process may use, by its CPU set and its control group's quota (`docker --cpus`)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text().split()
    except (OSError, ValueError):  # no control groups, or version 1 of them
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


def in_order(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Call `function` on each item in `workers` threads, and yield the results in the order of the items.

    Reads at most one item more than there are workers ahead. An exception raised by `items` is raised after the
    results of all earlier items.
    """
    pending: deque[Future[R]] = deque()
    failure: Exception | None = None
    source = iter(items)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="inference")
    try:
        while True:
            try:
                item = next(source)
            except StopIteration:
                break
            except Exception as error:  # raised below, after the earlier results
                failure = error
                break
            pending.append(pool.submit(function, item))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        if failure:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)


def rows_within(most: int, pixels: int) -> int:
    """Images of `pixels` pixels to compute at a time: `most`, or fewer so that they are a megapixel at most."""
    return max(1, min(most, 2**20 // pixels))


def weight_of(side: int | None) -> int:
    """Small images that an image of `side` x `side` pixels counts for; None: one in the networks' own form."""
    return 1 if side is None else max(1, side**2 // SMALL)
