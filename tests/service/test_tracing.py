"""Traces, by an exporter that keeps them: a span a request, its stages inside, under the caller's trace."""

import importlib.util
import itertools
import os
import sys
import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from ddaebm.model.errors import ConfigError
from ddaebm.service.tracing import Timings, Tracing, load_tracing
from tests.service.conftest import FakeEngine, MakeClient, files, png

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

needs_sdk = pytest.mark.skipif(
    importlib.util.find_spec("opentelemetry") is None or importlib.util.find_spec("opentelemetry.sdk") is None,
    reason="the otel extra is not installed",
)


@pytest.fixture(autouse=True)
def _no_variables_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def exporter() -> Any:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    return InMemorySpanExporter()


@pytest.fixture
def traced(make_client: MakeClient, exporter: Any, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    monkeypatch.setattr(
        "ddaebm.service.app.load_tracing", lambda version: Tracing(SimpleSpanProcessor(exporter), version)
    )
    return make_client()


def spans(exporter: Any) -> tuple[Any, dict[str, Any]]:
    """The request's, and its children by name."""
    made = exporter.get_finished_spans()
    (root,) = (span for span in made if span.kind.name == "SERVER")
    children = [span for span in made if span is not root]
    assert all(child.parent.span_id == root.context.span_id for child in children)
    assert all(child.context.trace_id == root.context.trace_id for child in children)
    assert all(root.start_time <= child.start_time <= child.end_time <= root.end_time for child in children)
    return root, {child.name: child for child in children}


@needs_sdk
@pytest.mark.parametrize(
    ("path", "options", "stages"),
    [
        ("/v1/samples", {"json": {"n": 2}}, ["queue", "infer", "encode"]),
        ("/v1/scores", {"files": files(png())}, ["decode", "queue", "infer"]),
        ("/v1/scores?heatmap=true", {"files": files(png())}, ["decode", "queue", "infer", "encode"]),
        ("/v2/models/fake-sampler/infer",
         {"json": {"inputs": [{"name": "seeds", "datatype": "INT64", "shape": [1, 1], "data": [7]}]}},
         ["decode", "queue", "infer", "encode"]),
    ],
)  # fmt: skip
def test_a_request_is_a_span_with_its_stages_in_their_order(
    traced: TestClient, exporter: Any, path: str, options: dict[str, Any], stages: list[str]
) -> None:
    before = time.time_ns()
    response = traced.post(path, headers={"x-request-id": "mine"}, **options)
    assert response.status_code == 200
    root, children = spans(exporter)
    assert before <= root.start_time <= root.end_time <= time.time_ns()
    route = "/v2/models/{name}/infer" if "v2" in path else path.partition("?")[0]
    assert root.name == f"POST {route}"
    assert dict(root.attributes) == {
        "http.request.method": "POST", "http.route": route, "http.response.status_code": 200, "url.scheme": "http",
        "url.path": path.partition("?")[0], "client.address": "testclient", "ddaebm.request_id": "mine",
    }  # fmt: skip
    assert root.resource.attributes["service.name"] == "ddaebm"
    assert list(children) == stages
    ordered = [children[stage] for stage in stages]
    assert all(one.end_time <= other.start_time + 1000 for one, other in itertools.pairwise(ordered))


@needs_sdk
def test_the_callers_trace_goes_on(traced: TestClient, exporter: Any) -> None:
    traced.get("/v1/models", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    root, _ = spans(exporter)
    assert f"{root.context.trace_id:032x}" == TRACE
    assert f"{root.parent.span_id:016x}" == PARENT


@needs_sdk
def test_a_caller_that_does_not_sample_is_not_traced(traced: TestClient, exporter: Any) -> None:
    traced.get("/v1/models", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert not exporter.get_finished_spans()


@needs_sdk
@pytest.mark.parametrize("parent", ["", "x", "00-0-0-01", f"00-{'0' * 32}-{PARENT}-01", "é" * 100])
def test_a_traceparent_that_is_none_begins_a_trace(traced: TestClient, exporter: Any, parent: str) -> None:
    headers: Any = {"traceparent": parent.encode("latin-1")}
    assert traced.get("/v1/models", headers=headers).status_code == 200
    root, _ = spans(exporter)
    assert root.parent is None


@needs_sdk
@pytest.mark.parametrize(("path", "status", "failed"), [("/nowhere", 404, False), ("/v1/samples", 500, True)])
def test_only_our_own_faults_are_errors(
    traced: TestClient, exporter: Any, engine: FakeEngine, path: str, status: int, failed: bool
) -> None:
    engine.fault = RuntimeError("broken")
    assert traced.post(path, json={}).status_code == status
    root, _ = spans(exporter)
    assert root.attributes["http.response.status_code"] == status
    assert (root.status.status_code.name == "ERROR") == failed


@needs_sdk
def test_probes_that_go_well_are_no_traces(traced: TestClient, exporter: Any) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        traced.get(path)
    assert not exporter.get_finished_spans()


@needs_sdk
def test_nothing_that_was_sent_is_in_a_span(traced: TestClient, exporter: Any) -> None:
    headers = {"authorization": "Bearer SECRET", "cookie": "SECRET"}
    traced.post("/v1/samples?SECRET=SECRET", json={"model": "SECRET"}, headers=headers)
    assert all("SECRET" not in span.to_json() for span in exporter.get_finished_spans())


@needs_sdk
def test_the_variable_turns_it_on_and_an_end_does_not_wait_for_a_collector_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load_tracing("1") is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracing = load_tracing("1")
    assert tracing is not None
    tracing.record("GET /", {}, {}, 200, time.perf_counter(), Timings())
    began = time.monotonic()
    tracing.close()
    assert time.monotonic() - began < 15


@needs_sdk
def test_a_protocol_that_is_not_spoken_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ConfigError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL.*http/protobuf"):
        load_tracing("1")


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_without_the_packages_the_variable_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=rf"{name} is set.*pip install .*otel"):
        load_tracing("1")


def test_stages_keep_when_they_ran() -> None:
    timings = Timings()
    timings["queue"] = 2.0
    timings["infer"] = 1.0
    timings["queue"] = 5.0
    timings["infer"] = 1.5
    assert timings == {"queue": 5.0, "infer": 1.5}
    (_, first, second), (_, third, fourth), (_, fifth, sixth), (_, seventh, eighth) = timings.stages
    assert [name for name, _, _ in timings.stages] == ["queue", "infer"] * 2
    spent = [second - first, fourth - third, sixth - fifth, eighth - seventh]
    assert spent == pytest.approx([2.0, 1.0, 3.0, 0.5])
    assert (second, sixth) == (third, seventh)
