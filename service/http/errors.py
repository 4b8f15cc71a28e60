"""One format for every error: RFC 9457 `application/problem+json`.

Besides the standard members there is a top-level `error` string, which clients of the Open Inference Protocol read, the
request id, and for 422 a list `errors` with one entry for each field.
"""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

_MOST = 10  # fields that one answer tells of
CLIENT_GONE = 499  # never sent, since the client has left; labels the outcome in the metrics
CLIENT_DEADLINE = "504-client"  # in the metrics, a 504 by the deadline that the client set: no fault of the service
# Sent with every response: no content sniffing, no framing, no referrer to other sites.
SECURITY_HEADERS = (
    ("x-content-type-options", "nosniff"), ("x-frame-options", "DENY"), ("referrer-policy", "no-referrer"),
)  # fmt: skip


class Problem(HTTPException):
    """An error for the client. `slug` is the end of its type URN; `detail` says what to do."""

    def __init__(
        self, status: int, slug: str, detail: str, headers: Mapping[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(status, detail, headers)
        self.slug = slug
        self.members = members

    def body(self) -> dict[str, Any]:
        return {
            "type": f"urn:ddaebm:error:{self.slug}",
            "title": self.slug.replace("-", " ").capitalize(),
            "status": self.status_code,
            "detail": self.detail,
            **self.members,
        }


class ProblemBody(BaseModel):
    """Schema of the body that `problem_response` sends."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    error: str
    request_id: str
    errors: list[dict[str, str]] | None = None


_CONTENT = {"application/problem+json": {"schema": ProblemBody.model_json_schema()}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request cannot be served; `detail` says why.", "content": _CONTENT},
    "5XX": {"description": "The service cannot serve it now.", "content": _CONTENT},
}


def problem_response(problem: Problem, path: str, request_id: str) -> Response:
    # ASCII, since client input may hold characters that UTF-8 cannot encode (lone surrogates).
    body = {**problem.body(), "instance": path, "error": problem.detail, "request_id": request_id}
    content = json.dumps(body, ensure_ascii=True, allow_nan=False).encode("ascii")
    return Response(content, problem.status_code, problem.headers, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Answer every exception of a handler with a problem."""

    def respond(request: Request, problem: Problem) -> Response:
        return problem_response(problem, request.url.path, request.state.context.request_id)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return respond(request, error if isinstance(error, Problem) else _from_http(error))

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return respond(request, from_validation(error.errors()))

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)


def from_validation(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """400 for a body that is not JSON, else 422 with a message for each of the first fields. No input is echoed."""
    if any(error["type"] == "json_invalid" for error in errors):
        return Problem(400, "malformed-json", "the request body is not valid JSON")
    fields = [
        {"field": ".".join(str(part)[:100] for part in error["loc"][1:]) or "body", "message": _message(error)}
        for error in errors[:_MOST]
    ]
    detail = "; ".join(f"{field['field']}: {field['message']}" for field in fields)
    return Problem(422, "invalid-request", detail, errors=fields)


def _message(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such field; /docs has all of them"
    if error["type"] == "bytes_type":
        return "must be a string of base64"
    text: str = error["msg"]
    return text.removeprefix("Value error, ")  # pydantic puts this before the message of our own validators


def _from_http(error: HTTPException) -> Problem:
    phrase = HTTPStatus(error.status_code).phrase
    return Problem(error.status_code, phrase.lower().replace(" ", "-"), error.detail or phrase, error.headers)
