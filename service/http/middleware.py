"""Around every request: a context, bounds on its body, metrics, a line of log, and a 500 for faults of our own."""

import asyncio
import itertools
import logging
import re
import secrets
import time
from collections.abc import Sequence
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddaebm.service.http.auth import check_key
from ddaebm.service.http.bodies import SMALL_BODY, Bodies, Body
from ddaebm.service.http.context import RequestContext
from ddaebm.service.http.errors import CLIENT_DEADLINE, CLIENT_GONE, SECURITY_HEADERS, Problem, problem_response
from ddaebm.service.http.paths import Paths, Traits
from ddaebm.service.logs import access, log_request
from ddaebm.service.metrics import Metrics
from ddaebm.service.tracing import Tracing

logger = logging.getLogger("ddaebm")

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
# Ids of requests that bring none. A counter avoids a system call per request, which would release the GIL.
_PROCESS, _COUNT = secrets.token_hex(8), itertools.count(1)
_SECURITY = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS]
_NO_SCRIPTS = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestMiddleware:
    """Sets `request.state.context`; routes receive it as a `RequestContext`."""

    def __init__(
        self, app: ASGIApp, paths: Paths, metrics: Metrics, max_body_bytes: int, bodies: Bodies,
        api_keys: Sequence[str], tracing: Tracing | None,
    ) -> None:  # fmt: skip
        self.app, self.paths, self.metrics, self.api_keys = app, paths, metrics, api_keys
        self.max_body_bytes, self.bodies = max_body_bytes, bodies
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = request_id_of(headers)
        context = RequestContext(request_id, Body(self.bodies))
        scope.setdefault("state", {})["context"] = context
        traits = self.paths.of(scope["path"])
        status = CLIENT_GONE

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                fields = [*_SECURITY, (b"x-request-id", request_id.encode())]
                if scope["path"] != "/docs":  # the only page with scripts
                    fields.append(_NO_SCRIPTS)
                if context.timings:
                    text = ", ".join(f"{name};dur={s * 1e3:.1f}" for name, s in context.timings.items())
                    fields.append((b"server-timing", text.encode()))
                message["headers"] = [*message["headers"], *fields]  # the app sets none of these
            await send(message)

        self.metrics.in_flight.inc()
        try:
            limit = self.max_body_bytes if traits.uploads else min(SMALL_BODY, self.max_body_bytes)
            if self.api_keys and not traits.public:
                check_key(headers, self.api_keys)
            if not traits.uploads and headers.get("content-encoding", "identity").strip().lower() != "identity":
                raise Problem(
                    415, "unsupported-encoding", "this route takes no Content-Encoding; send the body as it is"
                )
            _check_length(headers, limit, context.body)
            await self.app(scope, self._limited(receive, limit, context.body), send_with_headers)
        except asyncio.CancelledError:  # the drain ran out of time
            if status != CLIENT_GONE:
                raise
            stopped = Problem(
                503, "draining", "the service shut down before this was done; try again", {"Retry-After": "1"}
            )
            await problem_response(stopped, scope["path"], request_id)(scope, receive, send_with_headers)
        except ClientDisconnect:  # while its body was read; counted as 499, not as an error of ours
            logger.debug("request %s: the client left", request_id)
        except Problem as problem:  # from the two checks above; the app answers later ones itself
            response = problem_response(problem, scope["path"], request_id)
            response.headers["connection"] = "close"  # the body is not read
            await response(scope, receive, send_with_headers)
        except Exception:  # last resort: log, count, and send a 500 if the response has not started
            logger.exception("request %s failed", request_id)
            if status != CLIENT_GONE:  # the response has started: closing the connection is the only signal left
                raise
            fault = Problem(500, "internal", "the server failed; its log has the request id")
            await problem_response(fault, scope["path"], request_id)(scope, receive, send_with_headers)
        finally:
            context.body.release()
            self.metrics.in_flight.dec()
            self._finish(scope, headers, context, traits, status, began)

    def _finish(
        self, scope: Scope, headers: Headers, context: RequestContext, traits: Traits, status: int, began: float
    ) -> None:
        """Count, log and trace a request that was answered or whose client has left."""
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        seconds = time.perf_counter() - began
        path, client = quote(scope["path"]), (scope.get("client") or ("-",))[0]
        self.metrics.requests.labels(
            route, method, CLIENT_DEADLINE if _impatient(status, context) else str(status)
        ).inc()
        self.metrics.request_seconds.labels(route).observe(seconds)
        if status in _REASONS and not traits.public:
            self.metrics.rejected.labels(_reason(status, context)).inc()
        # Successful probes and scrapes would bury the rest.
        level = logging.DEBUG if traits.probe and status < 400 else logging.INFO
        if access.isEnabledFor(level):
            log_request(level, client, method, path, status, seconds, context.request_id)
        if self.tracing and level > logging.DEBUG:
            attributes = {
                "http.request.method": "_OTHER" if method == "other" else method, "http.route": route,
                "url.scheme": scope["scheme"], "url.path": path, "client.address": client,
                "ddaebm.request_id": context.request_id,
            }  # fmt: skip
            self.tracing.record(f"{method} {route}", headers, attributes, status, began, context.timings)

    def _limited(self, receive: Receive, limit: int, body: Body) -> Receive:
        """Bounds the bytes received, for bodies of unknown length, and the time that they take."""
        complete = False
        deadline = asyncio.get_running_loop().time() + self.bodies.seconds

        async def limited() -> Message:
            nonlocal complete
            if complete:  # the body is complete: from now on wait for a disconnect
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                seconds = self.bodies.seconds
                detail = f"the request body did not arrive within {seconds:g} s; send it faster, or less of it"
                raise Problem(408, "slow-body", detail, {"Connection": "close"}) from error
            complete = not message.get("more_body", False)
            body.add(len(message.get("body", b"")))
            if complete:
                body.complete()
            if body.received > limit:
                raise _too_large(limit)
            return message

        return limited


class Cors(CORSMiddleware):
    """Answers the preflight requests of browsers, outside of `RequestMiddleware`, since they bring no key."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        response.headers.update({"x-request-id": request_id_of(request_headers), **dict(SECURITY_HEADERS)})
        return response


def request_id_of(headers: Headers) -> str:
    """The client's own id if it is one, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"{_PROCESS}{next(_COUNT):016x}"


def _impatient(status: int, context: RequestContext) -> bool:
    """True if the answer is 504 because the client asked for a shorter deadline than ours."""
    return status == 504 and context.deadline is not None and context.deadline.by_client


def _reason(status: int, context: RequestContext) -> str:
    if context.body.refused:
        return "bodies_full"
    return "client_deadline" if _impatient(status, context) else context.reason or _REASONS[status]


def _too_large(limit: int) -> Problem:
    detail = f"the request body is over {limit} bytes; send less at once"
    return Problem(413, "body-too-large", detail, {"Connection": "close"})


def _check_length(headers: Headers, limit: int, body: Body) -> None:
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        return
    announced = int(length[:20])  # longer numbers are over the limit in any case
    if announced > limit:
        raise _too_large(limit)
    body.announce(announced)


_REASONS = {
    401: "unauthorized",
    408: "slow_body",
    413: "too_large",
    429: "queue_full",
    503: "not_ready",
    504: "deadline",
}
