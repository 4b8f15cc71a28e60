"""Requests made from the OpenAPI description, right ones and wrong ones: each answer is one that it describes."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.e2e.conftest import PATIENCE, Running
from tests.stress.conftest import STRESS, count

NAMES = {"/v1": "stand-in", "/v2": "stand-in-scorer"}
CASES = count(300, 10_000)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

Record = Callable[[str, object], None]


def test_every_answer_is_described(stand_in: Running, record_property: Record) -> None:
    schema = schemathesis.openapi.from_url(f"{stand_in.client.base_url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    strategies = [strategy for operation in operations for strategy in strategies_of(operation)]
    statuses: Counter[int] = Counter()
    with requests.Session() as session:
        for strategy in strategies:
            statuses += fuzz(strategy, CASES // len(strategies), session)
        for operation in operations:  # once each: all that there is of those that take nothing
            statuses += fuzz(operation.as_strategy(), 1, session)
    record_property("operations", len(operations))
    record_property("cases", sum(statuses.values()))
    record_property("statuses", dict(sorted(statuses.items())))
    assert statuses.keys() >= {200, 400, 404, 422}
    assert "Traceback" not in stand_in.log.read_text()
    assert stand_in.client.get("/readyz").status_code == 200


def strategies_of(operation: APIOperation) -> list[SearchStrategy[Case]]:
    """Requests that keep to the description, also with a name that there is, and requests that do not.

    None for an operation that takes nothing.
    """
    if not operation.body and not any(operation.iter_parameters()):
        return []
    strategies = [operation.as_strategy()]
    name: dict[str, Any] = {}
    if "{name}" in operation.path:
        name = {"path_parameters": {"name": NAMES[operation.path[:3]]}}
        strategies.append(operation.as_strategy(**name))
    if operation.body or any(parameter.name != "name" for parameter in operation.iter_parameters()):
        strategies.append(operation.as_strategy(GenerationMode.NEGATIVE, **name))
    return strategies


def fuzz(strategy: SearchStrategy[Case], cases: int, session: requests.Session) -> Counter[int]:
    """How many answers there were of each status."""
    statuses: Counter[int] = Counter()

    @settings(max_examples=cases, deadline=None, derandomize=not STRESS, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(strategy)
    def described(case: Case) -> None:
        response = case.call_and_validate(session=session, checks=CHECKS, timeout=PATIENCE)
        statuses[response.status_code] += 1

    described()
    return statuses
