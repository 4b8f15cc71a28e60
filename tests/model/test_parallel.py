"""Concurrent calls: order of the results, read-ahead, and errors."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddaebm.model.parallel import in_order, usable_cores


def test_results_come_in_the_order_of_the_items_though_later_ones_are_done_first() -> None:
    both = threading.Barrier(2)
    last_done = threading.Event()

    def work(item: int) -> int:
        both.wait(10)  # fails unless two calls run at once
        if item % 2:
            last_done.set()
        else:
            assert last_done.wait(10)
            last_done.clear()
        return item * item

    assert list(in_order(work, range(8), workers=2)) == [n * n for n in range(8)]


def test_little_is_read_ahead() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            read.append(item)
            yield item

    results = in_order(lambda item: item, items(), workers=3)
    assert [next(results), next(results)] == [0, 1]
    assert len(read) == 5
    results.close()  # type: ignore[attr-defined]
    assert len(read) == 5


def test_what_the_items_raise_comes_after_all_results() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise KeyError("the rest")

    results = in_order(lambda item: item, items(), workers=4)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(KeyError, match="the rest"):
        next(results)


def test_what_the_function_raises_ends_it_and_what_waits_is_not_begun() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        raise ValueError(str(item))

    with pytest.raises(ValueError, match="0"):
        list(in_order(work, range(100), workers=1))
    assert len(begun) <= 2


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8), ("", 8)]
)
def test_a_quota_of_the_control_group_bounds_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, cores: int
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr("ddaebm.model.parallel.CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    assert usable_cores() == cores
    (tmp_path / "cpu.max").unlink()
    assert usable_cores() == 8
