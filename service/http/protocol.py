"""uvicorn's HTTP connections, with bounds on what a client may send and on how long it may take.

uvicorn itself reads headers of any length, waits for them forever, and queues every pipelined request. Here a client
has a time limit for the next request, for the rest of its headers, for the rest of a body that the app does not read,
and for receiving its response. The middleware limits the time of bodies that the app reads.
"""

import asyncio
import logging
import math
import uuid
from typing import Any, Literal, cast

import httptools
from fastapi import FastAPI
from uvicorn import Config
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from ddaebm.service.http.errors import SECURITY_HEADERS, Problem, problem_response
from ddaebm.service.http.transport import ResponseTransport
from ddaebm.service.logs import log_request
from ddaebm.service.state import Service

_FRAMING = {b"content-length", b"transfer-encoding"}


class Connections(ServerState):
    """All connections of a server."""

    def __init__(self) -> None:
        super().__init__()
        self.awaited: dict[HttpProtocol, None] = {}  # connections waiting for their client, longest first


class HttpProtocol(HttpToolsProtocol):
    """One connection. `data_received` feeds the parser, which calls the `on_…` methods."""

    def __init__(
        self,
        config: Config,
        server_state: Connections,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.all_awaited = server_state.awaited
        service: Service = cast(FastAPI, config.app).state.service  # set before connections are accepted
        self.settings, self.metrics = settings, _ = service.settings, service.metrics
        self.seconds = {
            "idle": settings.keep_alive_seconds, "head": settings.header_seconds, "body": settings.body_seconds,
        }  # fmt: skip
        self.receiving: Literal["idle", "head", "body"] = "head"  # part of the request being received
        self.begun = False  # part of the head has arrived
        self.head_bytes = 0  # received since the parser last completed something
        self.since = math.inf  # when waiting for the client began, loop time
        self.awaited: str | None = None  # what `timer` waits for
        self.timer: asyncio.TimerHandle | None = None
        self.send_timer: asyncio.TimerHandle | None = None
        self.answering: RequestResponseCycle | None = None  # being answered; `cycle` is the latest request received
        self.ended = False  # further input is ignored
        self.upgrading = False  # the request offers another protocol
        self.restarting = False  # a new parser is told of the headers that another one has read

    @property
    def busy(self) -> bool:
        """True while a request is being answered."""
        return self.answering is not None and not self.answering.response_complete

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.metrics.connections.set(len(self.connections))
        self._await_client()
        self._watch()
        if len(self.connections) > self.settings.max_connections:
            self._make_room()

    def _make_room(self) -> None:
        """Close the connection that has waited longest for its client. If none waits, refuse this one."""
        oldest = next(iter(self.all_awaited))
        if oldest is not self:
            del self.all_awaited[oldest]  # its connection_lost comes later; another connection may come first
            self.connections.discard(oldest)
            oldest.transport.abort()
            self.metrics.rejected.labels("too_many_connections").inc()
        else:
            detail = f"all of {self.settings.max_connections} connections have a request under way; try again"
            self._refuse(Problem(503, "too-many-connections", detail, {"Retry-After": "1"}))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.answering is not None and self.busy:
            self.answering.disconnected = True
            self.answering.message_event.set()
        self.pipeline.clear()  # no client is left to answer
        super().connection_lost(exc)
        self.metrics.connections.set(len(self.connections))
        self.ended = True
        self._watch()
        self.all_awaited.pop(self, None)
        if self.send_timer:
            self.send_timer.cancel()

    # Requests

    def data_received(self, data: bytes) -> None:
        if self.ended:
            return
        if self.receiving == "idle":
            self._expect_head()
        self.head_bytes += len(data)
        rest = memoryview(data)
        try:
            while rest:
                rest = self._feed(rest)
            if self.head_bytes > self.settings.max_header_bytes:
                raise self._too_large()
        except Problem as problem:
            self._refuse(problem)
        except httptools.HttpParserError as error:
            cause = error.__context__  # raised by one of the callbacks
            malformed = Problem(400, "malformed-request", f"this is not HTTP/1.1: {error}")
            self._refuse(cause if isinstance(cause, Problem) else malformed)
        self._watch()

    def _feed(self, data: memoryview) -> memoryview:
        """Parse `data` and return the rest."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade()
            return data[upgrade.args[0] :]
        return data[:0]

    def _ignore_upgrade(self) -> None:
        """Continue with the body of a request whose offer to upgrade is ignored (RFC 9110, section 7.8).

        The parser takes what follows the headers for another protocol. A new one is told that a body follows.
        """
        framing = [name + b": " + value for name, value in self.headers if name in _FRAMING]
        self.parser = httptools.HttpRequestParser(self)
        self.upgrading, self.restarting = False, True
        self.parser.feed_data(b"\r\n".join([b"POST / HTTP/1.1", *framing, b"", b""]))
        self.restarting = False

    def _expect_head(self) -> None:
        self.receiving, self.begun = "head", False
        self._await_client()

    def on_message_begin(self) -> None:
        if self.restarting:
            return
        self._expect_head()
        self.begun = True
        self.head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self.restarting:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.receiving == "body":  # ignore trailers, and headers that are read again
            return
        if len(self.headers) == self.settings.max_headers:
            raise Problem(431, "headers-too-large", f"over {self.settings.max_headers} headers; send fewer")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.restarting:
            return
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.settings.max_header_bytes:
            raise self._too_large()
        if len(self.pipeline) == self.settings.max_pipelined:
            raise Problem(429, "pipelined", "too many requests at once on one connection")
        self.receiving = "body"
        self.head_bytes = 0
        self.upgrading = self.parser.should_upgrade()
        if self.parser.get_http_version() == "1.0":  # it has no 100 Continue (RFC 9110, section 10.1.1)
            self.expect_100_continue = False
        super().on_headers_complete()
        self.cycle.transport = cast(asyncio.Transport, ResponseTransport(self))

    def on_body(self, body: bytes) -> None:
        self.head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.upgrading:  # only the headers are
            return
        self.receiving = "idle"
        self.head_bytes = 0
        super().on_message_complete()

    def _too_large(self) -> Problem:
        limit = self.settings.max_header_bytes
        return Problem(431, "headers-too-large", f"request line and headers are over {limit} bytes; send less")

    # Answers

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self.answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # `timer` does this too
        self._await_client()
        if self.transport.is_closing():  # closes once everything is sent
            self._expect_taken()
        self._watch()

    def pause_writing(self) -> None:
        """The client reads more slowly than we send."""
        super().pause_writing()
        self._expect_taken()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.send_timer and not self.transport.is_closing():
            self.send_timer.cancel()
            self.send_timer = None

    def _expect_taken(self) -> None:
        if self.send_timer is None:
            self.send_timer = self.loop.call_later(self.settings.send_seconds, self._not_taken)

    def _not_taken(self) -> None:
        self.metrics.rejected.labels("slow_reader").inc()
        self.transport.abort()

    def _refuse(self, problem: Problem) -> None:
        """Answer in place of the app, then close. If other responses are due first, close after them instead."""
        self.ended = True
        self.metrics.rejected.labels(problem.slug.replace("-", "_")).inc()
        if self.answering and self.busy:
            whole = self.receiving != "body"  # whether the latest request was received completely
            if not whole and self.pipeline:
                self.pipeline.popleft()
                whole = True
            if whole:
                last = self.pipeline[0][0] if self.pipeline else self.answering
                last.keep_alive = False
                return
            self.answering.disconnected = True  # the app receives nothing more, and its response is discarded
            self.answering.message_event.set()
            if self.answering.response_started:
                self.transport.abort()
                return
        request_id, status = uuid.uuid4().hex, problem.status_code
        response = problem_response(problem, "", request_id)
        response.headers.update({**dict(SECURITY_HEADERS), "x-request-id": request_id, "connection": "close"})
        lines = [name + b": " + value + b"\r\n" for name, value in response.raw_headers]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", response.body]))
        self.linger()
        self.metrics.requests.labels("unmatched", "other", str(status)).inc()
        client = self.client[0] if self.client else "-"
        log_request(logging.INFO, client, "-", "-", status, self.loop.time() - self.since, request_id)

    def linger(self) -> None:
        """Close, but keep reading for a while. After an immediate close the client would see a reset, no answer."""
        self.ended = True
        self.pipeline.clear()
        self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(self.settings.body_seconds, self.transport.abort)

    # Time

    def _await_client(self) -> None:
        self.since = self.loop.time()
        self.all_awaited.pop(self, None)
        self.all_awaited[self] = None

    def _watch(self) -> None:
        """Start the timer for what the client must send next, or stop it while the server is working."""
        if self.busy and self.receiving != "body":
            self.all_awaited.pop(self, None)
        awaited = None if self.busy or self.ended else self.receiving
        if awaited == self.awaited:
            return
        self.awaited = awaited
        if self.timer:
            self.timer.cancel()
        self.timer = self.loop.call_later(self.seconds[awaited], self._too_late) if awaited else None

    def _too_late(self) -> None:
        if self.awaited == "head" and self.begun:
            seconds = self.settings.header_seconds
            self._refuse(Problem(408, "slow-headers", f"the headers did not arrive within {seconds:g} s"))
        else:  # the client has its response, or never sent a request
            self.transport.abort()
