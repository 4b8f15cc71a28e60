"""Logs: one line a request, with its id and nothing that it carried; text or JSON."""

import json
import logging
import logging.config
from datetime import datetime

import pytest
from starlette.testclient import TestClient

from ddaebm.service.logs import JsonFormatter, log_config
from tests.service.conftest import FakeEngine

ID = {"x-request-id": "abc-123"}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "ddaebm")
    caplog.handler.setFormatter(JsonFormatter())
    return caplog


def entries(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [json.loads(caplog.handler.format(record)) for record in caplog.records if record.name.startswith("ddaebm")]


def test_a_request_is_one_line_with_its_id_and_without_what_it_carried(
    client: TestClient, lines: pytest.LogCaptureFixture
) -> None:
    lines.clear()
    headers = {**ID, "authorization": "Bearer secret", "content-type": "application/json"}
    client.post("/v1/samples?secret=secret", content=b'{"seed": "secret"}', headers=headers)
    (entry,) = entries(lines)
    assert "secret" not in json.dumps(entry)
    assert datetime.fromisoformat(str(entry.pop("time"))).tzinfo is not None
    milliseconds = entry.pop("milliseconds")
    assert isinstance(milliseconds, float)
    assert entry == {
        "level": "info", "logger": "ddaebm.access", "client": "testclient", "method": "POST", "path": "/v1/samples",
        "status": 422, "request_id": "abc-123", "message": f"testclient POST /v1/samples 422 {milliseconds} ms abc-123",
    }  # fmt: skip


@pytest.mark.parametrize("path", ["/%0a%0dINFO:%20forged", "/%1b[31m", "/é", '/"}', "/%ff%fe"])
def test_no_path_can_forge_a_line(client: TestClient, lines: pytest.LogCaptureFixture, path: str) -> None:
    lines.clear()
    client.get(path)
    (record,) = lines.records[:1]
    message = record.getMessage()
    assert message.isascii()
    assert message.isprintable()
    assert len(JsonFormatter().format(record).splitlines()) == 1


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/metrics"])
def test_probes_that_went_well_are_not_logged(client: TestClient, lines: pytest.LogCaptureFixture, path: str) -> None:
    lines.clear()
    client.get(path)
    assert entries(lines) == []
    client.post(path)
    assert [entry["status"] for entry in entries(lines)] == [405]


def test_a_fault_is_logged_with_its_trace_in_one_line(
    client: TestClient, engine: FakeEngine, lines: pytest.LogCaptureFixture
) -> None:
    lines.clear()
    engine.fault = RuntimeError("two\nlines")
    client.post("/v1/samples", json={}, headers=ID)
    found = entries(lines)
    assert [entry["level"] for entry in found] == ["error", "error", "info"]
    assert "two\nlines" in str(found[0]["exception"])
    assert "abc-123" in str(found[1]["message"])
    assert found[2]["status"] == 500


@pytest.mark.parametrize("form", ["text", "json"])
def test_both_forms_are_a_configuration_that_logging_takes(form: str) -> None:
    config = log_config(form)
    logging.config.DictConfigurator(config).configure_formatter(config["formatters"]["default"])
    assert config["loggers"]["ddaebm"]["handlers"] == ["default"]
    assert config["loggers"].keys() >= {"uvicorn", "uvicorn.error"}
