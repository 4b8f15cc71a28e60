"""Bounds the bytes of request bodies in memory, over all requests."""

import asyncio
import math
import time
from dataclasses import dataclass, field

from ddaebm.service import memory
from ddaebm.service.http.errors import Problem

# Limit of a body on most routes, whose JSON is parsed on the event loop; 1,024 seeds take a third of it. The first
# bytes of every body up to this size are not counted, so that large uploads do not keep small requests out.
SMALL_BODY = 64 * 2**10
_LARGE = 4 * 2**20  # bytes


@dataclass
class Bodies:
    limit: int  # bytes
    seconds: float  # in which a body must arrive
    held: int = 0
    counted: "dict[Body, None]" = field(default_factory=dict)  # those with bytes that count
    _giving: "asyncio.Future[None] | None" = None

    def give_memory_back(self) -> None:
        """Large bodies have been freed, in pieces that glibc would keep."""
        if self._giving is None or self._giving.done():
            self._giving = asyncio.get_running_loop().run_in_executor(None, memory.give_back)

    def seconds_until(self, room: int) -> int:
        """Whole seconds after which `room` bytes are free at the latest, if no other body takes them.

        A body that arrives may take all of its time; one that is complete is decoded soon.
        """
        missing = room - (self.limit - self.held)
        wait = 0.0
        for body in sorted(self.counted, key=lambda body: body.until):
            if missing <= 0:
                break
            missing -= body.bytes
            wait = max(wait, body.until - time.monotonic())
        return max(1, math.ceil(wait))


@dataclass(eq=False)
class Body:
    """The bytes of one request. It counts bytes received, not announced: announcing costs a client nothing."""

    all: Bodies
    received: int = 0
    bytes: int = 0  # of these, how many count
    refused: bool = False
    until: float = 0.0  # when it has arrived or is given up, monotonic

    def announce(self, length: int) -> None:
        """Raises Problem 429 if `length` bytes would not fit now."""
        self.until = time.monotonic() + self.all.seconds
        self._check(length - SMALL_BODY)

    def add(self, length: int) -> None:
        """Raises Problem 429 if `length` more bytes do not fit."""
        self.received += length
        more = max(0, self.received - SMALL_BODY) - self.bytes
        self._check(more)
        if more > 0:
            self.bytes += more
            self.all.held += more
            self.all.counted[self] = None

    def complete(self) -> None:
        """It has arrived."""
        self.until = 0.0

    def release(self) -> None:
        """Stop counting: the bytes were decoded or discarded."""
        if self.bytes > _LARGE:
            self.all.give_memory_back()
        self.all.held -= self.bytes
        self.bytes = 0
        self.all.counted.pop(self, None)

    def _check(self, more: int) -> None:
        if more > 0 and self.all.held + more > self.all.limit:
            self.refused = True
            wait = self.all.seconds_until(more)
            detail = f"{self.all.held} bytes of other request bodies are in memory; try again in {wait} s, or send less"
            raise Problem(429, "bodies-full", detail, {"Retry-After": str(wait), "Connection": "close"})
