"""What surrounds every request: its id, its size limit, its metrics, and a last resort for our own faults."""

import asyncio
import itertools
import logging
import re
import secrets
import time
from collections.abc import MutableMapping, Sequence
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddaebm.service.http.auth import PROBES, PUBLIC, check_key
from ddaebm.service.http.bodies import SMALL_BODY, Bodies, Body
from ddaebm.service.http.errors import CLIENT_GONE, SECURITY_HEADERS, Problem, problem_response
from ddaebm.service.logs import access, log_request
from ddaebm.service.metrics import Metrics
from ddaebm.service.tracing import Timings, Tracing

logger = logging.getLogger("ddaebm")

_LARGE_BODIES = re.compile(r"/v1/scores|/v2/models/[^/]+(/versions/[^/]+)?/infer")
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
# Of requests that bring no id. Random numbers anew for each would be a call of the system, at which other threads take
# the interpreter over from the event loop.
_PROCESS, _COUNT = secrets.token_hex(8), itertools.count(1)
_SECURITY = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS]
_NO_SCRIPTS = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestMiddleware:
    """Sets `request.state.request_id`, `.timings` (stage -> seconds, sent as Server-Timing) and `.body`."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, max_body_bytes: int, bodies: Bodies, body_seconds: float,
        api_keys: Sequence[str], tracing: Tracing | None,
    ) -> None:  # fmt: skip
        self.app, self.metrics, self.api_keys = app, metrics, api_keys
        self.max_body_bytes, self.bodies, self.body_seconds = max_body_bytes, bodies, body_seconds
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"{_PROCESS}{next(_COUNT):016x}"
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        body = Body(self.bodies)
        timings = Timings()
        state["request_id"], state["timings"], state["body"] = request_id, timings, body
        status = CLIENT_GONE

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                fields = [*_SECURITY, (b"x-request-id", request_id.encode())]
                if scope["path"] != "/docs":  # the one page with scripts
                    fields.append(_NO_SCRIPTS)
                if timings:
                    text = ", ".join(f"{name};dur={s * 1e3:.1f}" for name, s in timings.items())
                    fields.append((b"server-timing", text.encode()))
                message["headers"] = [*message["headers"], *fields]  # none of them is set further in
            await send(message)

        try:
            large = _LARGE_BODIES.fullmatch(scope["path"])
            limit = self.max_body_bytes if large else min(SMALL_BODY, self.max_body_bytes)
            if self.api_keys and scope["path"] not in PUBLIC:
                check_key(headers, self.api_keys)
            _check_length(headers, limit, body)
            await self.app(scope, self._limited(receive, limit, body), send_with_headers)
        except ClientDisconnect:  # while its body was read: counted as what it is, and no fault of ours
            logger.debug("request %s: the client left", request_id)
        except Problem as problem:  # from the two checks; later ones are answered inside the app
            response = problem_response(problem, scope["path"], request_id)
            response.headers["connection"] = "close"  # the body is not read
            await response(scope, receive, send_with_headers)
        except Exception:  # the last resort: logged, counted, and a 500 where one can still be sent
            logger.exception("request %s failed", request_id)
            if status != CLIENT_GONE:  # already under way: only closing the connection can tell
                raise
            fault = Problem(500, "internal", "the server failed; its log has the request id")
            await problem_response(fault, scope["path"], request_id)(scope, receive, send_with_headers)
        finally:
            body.release()
            self._finish(scope, headers, status, began)

    def _finish(self, scope: Scope, headers: Headers, status: int, began: float) -> None:
        """Count, log and trace a request that has been answered, or whose client has left."""
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        seconds = time.perf_counter() - began
        state, path, client = scope["state"], quote(scope["path"]), (scope.get("client") or ("-",))[0]
        self.metrics.requests.labels(route, method, str(status)).inc()
        self.metrics.request_seconds.labels(route).observe(seconds)
        if status in _REASONS and scope["path"] not in PUBLIC:
            self.metrics.rejected.labels("bodies_full" if state["body"].refused else _REASONS[status]).inc()
        # Probes and scrapes that went well would bury the rest.
        level = logging.DEBUG if scope["path"] in PROBES and status < 400 else logging.INFO
        if access.isEnabledFor(level):
            log_request(level, client, method, path, status, seconds, state["request_id"])
        if self.tracing and level > logging.DEBUG:
            attributes = {
                "http.request.method": "_OTHER" if method == "other" else method, "http.route": route,
                "url.scheme": scope["scheme"], "url.path": path, "client.address": client,
                "ddaebm.request_id": state["request_id"],
            }  # fmt: skip
            self.tracing.record(f"{method} {route}", headers, attributes, status, began, state["timings"])

    def _limited(self, receive: Receive, limit: int, body: Body) -> Receive:
        """Counts what arrives, for bodies that do not say how long they are, and bounds how long they may take."""
        complete = False
        deadline = asyncio.get_running_loop().time() + self.body_seconds

        async def limited() -> Message:
            nonlocal complete
            if complete:  # what is waited for now is that the client leaves
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                detail = (
                    f"the request body did not arrive within {self.body_seconds:g} s; send it faster, or less of it"
                )
                raise Problem(408, "slow-body", detail, {"Connection": "close"}) from error
            complete = not message.get("more_body", False)
            body.add(len(message.get("body", b"")))
            if body.received > limit:
                raise _too_large(limit)
            return message

        return limited


def _too_large(limit: int) -> Problem:
    detail = f"the request body is over {limit} bytes; send less at once"
    return Problem(413, "body-too-large", detail, {"Connection": "close"})


def _check_length(headers: Headers, limit: int, body: Body) -> None:
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        return
    announced = int(length[:20])  # more digits are too many in any case
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
