"""All cores, by several calls at a time of one thread each: threads of one call wait for each other all the time."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of the control group: microseconds in each period, or max

T = TypeVar("T")
R = TypeVar("R")


def usable_cores() -> int:
    """Those that this process may use: of its CPU set, and by the quota of its control group (`docker --cpus`)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text().split()
    except (OSError, ValueError):  # no control groups, or their first version
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


def in_order(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`function` of each item in the order of the items, `workers` at a time; one item more is read ahead.

    What `items` raises comes after the results of all items before.
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
            except Exception as error:  # raised below, when its turn has come
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
