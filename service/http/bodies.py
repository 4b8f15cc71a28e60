"""Bounds the bytes of request bodies in memory, over all requests."""

from dataclasses import dataclass

from ddaebm.service.http.errors import Problem

# Limit of a body on most routes, whose JSON is parsed on the event loop; 1,024 seeds take a third of it. The first
# bytes of every body up to this size are not counted, so that large uploads do not keep small requests out.
SMALL_BODY = 64 * 2**10


@dataclass
class Bodies:
    limit: int  # bytes
    held: int = 0


@dataclass
class Body:
    """The bytes of one request. It counts bytes received, not announced: announcing costs a client nothing."""

    all: Bodies
    received: int = 0
    counted: int = 0
    refused: bool = False

    def announce(self, length: int) -> None:
        """Raises Problem 429 if `length` bytes would not fit now."""
        self._check(length - SMALL_BODY)

    def add(self, length: int) -> None:
        """Raises Problem 429 if `length` more bytes do not fit."""
        self.received += length
        more = max(0, self.received - SMALL_BODY) - self.counted
        self._check(more)
        self.counted += more
        self.all.held += more

    def release(self) -> None:
        """Stop counting: the bytes were decoded or discarded."""
        self.all.held -= self.counted
        self.counted = 0

    def _check(self, more: int) -> None:
        if more > 0 and self.all.held + more > self.all.limit:
            self.refused = True
            detail = f"{self.all.held} bytes of other request bodies are being read; try again, or send less at once"
            raise Problem(429, "bodies-full", detail, {"Retry-After": "1", "Connection": "close"})
