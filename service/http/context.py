"""The context of one request, from the middleware to the queue."""

import math
import re
import time
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request
from starlette.datastructures import Headers

from ddaebm.service.http.bodies import Body
from ddaebm.service.http.errors import Problem
from ddaebm.service.tracing import Timings

_URGENCY = re.compile(r"(?:^|,)\s*u=([0-7])\s*(?:$|[,;])")


@dataclass
class Deadline:
    """The time by which a request must be answered."""

    allowed: float  # seconds
    began: float = field(default_factory=time.monotonic)
    by_client: bool = False  # shortened by the client

    def left(self) -> float:
        return max(0.0, self.began + self.allowed - time.monotonic())

    def shorten(self, seconds: float) -> None:
        """Allow a client's fewer seconds."""
        if seconds < self.allowed:
            self.allowed, self.by_client = seconds, True

    def check(self) -> None:
        """Raises Problem 504 once it has passed."""
        if not self.left():
            raise self.problem()

    def problem(self) -> Problem:
        return Problem(504, "deadline", f"not done within {self.allowed:g} s; ask for less, or try when it is quieter")


@dataclass
class RequestContext:
    """One request. The middleware makes it; routes and the runner read and update it."""

    request_id: str
    body: Body
    timings: Timings = field(default_factory=Timings)  # seconds by stage, sent as Server-Timing
    low: bool = False  # low priority: other requests may pass
    reason: str | None = None  # why it was refused, in the metrics, where the status does not tell
    admitted: bool = False  # part of its work has been accepted by the queue, so the rest is not refused
    deadline: Deadline | None = None

    def start(self, headers: Headers, longest: float) -> Deadline:
        """The deadline, which starts at the first call: `longest` seconds, or fewer by `X-Request-Timeout`.

        Raises:
            Problem: 400, the header is not a positive number.
        """
        if self.deadline is None:
            self.low = self.low or is_low(headers)
            wanted = _wanted_seconds(headers)
            self.deadline = Deadline(longest)
            self.deadline.shorten(wanted)
        return self.deadline


def _wanted_seconds(headers: Headers) -> float:
    header = headers.get("x-request-timeout")
    if header is None:
        return math.inf
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise Problem(400, "bad-timeout", "X-Request-Timeout must be a positive number of seconds")
    return seconds


def is_low(headers: Headers) -> bool:
    """True if the `Priority` header asks for low priority: `u=4` to `u=7` (RFC 9218; 3 is the default)."""
    urgency = _URGENCY.search(headers.get("priority", ""))
    return urgency is not None and int(urgency[1]) > 3


async def context_of(request: Request) -> RequestContext:  # async, or FastAPI would call it on a worker thread
    return cast(RequestContext, request.state.context)


Context = Annotated[RequestContext, Depends(context_of)]
