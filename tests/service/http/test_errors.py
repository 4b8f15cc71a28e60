"""One envelope for every error."""

import json

import pytest
from starlette.testclient import TestClient

from ddaebm.service.http.errors import Problem, from_validation, problem_response
from tests.service.conftest import check_problem


@pytest.mark.parametrize(
    ("method", "path", "status", "slug"),
    [
        ("GET", "/nowhere", 404, "not-found"),
        ("GET", "/v1/nowhere/%ED%A0%80", 404, "not-found"),
        ("DELETE", "/v1/samples", 405, "method-not-allowed"),
        ("GET", "/v1/scores", 405, "method-not-allowed"),
        ("POST", "/readyz", 405, "method-not-allowed"),
        ("POST", "/v1/scores", 415, "unsupported-media-type"),
    ],
)
def test_every_error_of_routing_is_a_problem(
    client: TestClient, method: str, path: str, status: int, slug: str
) -> None:
    problem = check_problem(client.request(method, path), status, slug)
    assert problem["title"] == slug.replace("-", " ").capitalize()


def test_a_wrong_method_is_told_the_right_ones(client: TestClient) -> None:
    assert client.get("/v1/samples").headers["allow"] == "POST"


def test_the_instance_is_the_path_without_its_query(client: TestClient) -> None:
    assert check_problem(client.get("/nowhere?token=secret"), 404)["instance"] == "/nowhere"


def test_headers_and_further_members_of_a_problem_are_sent() -> None:
    problem = Problem(429, "queue-full", "come back", {"Retry-After": "3"}, limit=7)
    response = problem_response(problem, "/x", "id-1")
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert json.loads(bytes(response.body)) == {
        "type": "urn:ddaebm:error:queue-full",
        "title": "Queue full",
        "status": 429,
        "detail": "come back",
        "limit": 7,
        "instance": "/x",
        "error": "come back",
        "request_id": "id-1",
    }


def test_a_problem_may_speak_of_what_utf8_cannot_say() -> None:
    body = bytes(problem_response(Problem(404, "unknown-model", "no \ud800"), "/\udfff", "id").body)
    assert json.loads(body.decode("ascii"))["detail"] == "no \ud800"


def test_validation_errors_name_their_field_and_do_not_echo_the_input() -> None:
    errors = [
        {"type": "int_type", "loc": ("body", "seeds", 3), "msg": "Input should be an integer", "input": "secret"},
        {"type": "missing", "loc": ("query", "alpha"), "msg": "Field required", "input": "secret"},
        {"type": "missing", "loc": ("body",), "msg": "Field required", "input": "secret"},
    ]
    problem = from_validation(errors)
    assert (problem.status_code, problem.slug) == (422, "invalid-request")
    assert [field["field"] for field in problem.members["errors"]] == ["seeds.3", "alpha", "body"]
    assert "secret" not in json.dumps(problem.body())


def test_a_thousand_validation_errors_make_a_short_answer() -> None:
    errors = [{"type": "int_type", "loc": ("body", "seeds", i), "msg": "not whole"} for i in range(1000)]
    assert len(from_validation(errors).members["errors"]) == 10


def test_a_body_that_is_no_json_is_400() -> None:
    problem = from_validation([{"type": "json_invalid", "loc": ("body", 5), "msg": "JSON decode error"}])
    assert (problem.status_code, problem.slug) == (400, "malformed-json")
