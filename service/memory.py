"""Hints to glibc's allocator. On other systems they do nothing."""

import ctypes
from typing import Any

_M_ARENA_MAX = -8  # of <malloc.h>


def _function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, lambda *arguments: None)


def share_pool() -> None:
    """Use one arena for all threads. With one each, glibc would keep the peak memory of every thread."""
    _function("mallopt")(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Return freed memory to the system now.

    A smaller M_MMAP_THRESHOLD would do this by itself, but costs a tenth of the throughput.
    """
    _function("malloc_trim")(0)
