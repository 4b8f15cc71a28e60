"""How many bytes of request bodies are in memory at once, over all requests."""

from dataclasses import dataclass

from ddaebm.service.http.errors import Problem

# All that most routes take: JSON that is parsed on the event loop, of which 1,024 seeds are a third. And what is not
# counted of any body, so that large ones keep nobody out who sends little.
SMALL_BODY = 64 * 2**10


@dataclass
class Bodies:
    limit: int  # bytes
    held: int = 0


@dataclass
class Body:
    """What one request holds. It counts what has come, not what is announced: announcing costs a client nothing."""

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
        """The bytes have been made into something smaller, or thrown away."""
        self.all.held -= self.counted
        self.counted = 0

    def _check(self, more: int) -> None:
        if more > 0 and self.all.held + more > self.all.limit:
            self.refused = True
            detail = f"{self.all.held} bytes of other request bodies are being read; try again, or send less at once"
            raise Problem(429, "bodies-full", detail, {"Retry-After": "1", "Connection": "close"})
