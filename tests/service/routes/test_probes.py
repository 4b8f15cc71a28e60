"""Probes, and the page that Prometheus scrapes."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from ddaebm.service.app import create_app
from ddaebm.service.settings import Settings
from ddaebm.service.state import Service
from tests.service.conftest import PATIENCE, FakeEngine, check_problem, metric, wait_until


def service_of(client: TestClient) -> Service:
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    return service


@pytest.mark.parametrize(("path", "status"), [("/livez", "live"), ("/readyz", "ready"), ("/health", "ready")])
def test_a_warm_service_is_live_and_ready(client: TestClient, path: str, status: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.json()) == (200, {"status": status})


def test_the_engine_is_warm_at_the_largest_batch_before_the_first_request(engine: FakeEngine) -> None:
    client = TestClient(create_app(Settings(max_batch=5), engine))
    assert not engine.warmed_up
    with client:
        assert engine.warmed_up == 5


def test_probes_answer_while_the_engine_is_busy(client: TestClient, engine: FakeEngine) -> None:
    with ThreadPoolExecutor() as pool, engine.blocked():
        request = pool.submit(client.post, "/v1/samples", json={})
        assert engine.entered.wait(PATIENCE)
        assert client.get("/readyz").status_code == client.get("/livez").status_code == 200
        engine.release()
        assert request.result(PATIENCE).status_code == 200


def test_a_draining_service_is_live_but_not_ready(client: TestClient) -> None:
    service_of(client).runner.draining = True
    assert "draining" in check_problem(client.get("/readyz"), 503, "not-ready")["detail"]
    assert client.get("/livez").status_code == 200


def test_the_metrics_page_is_what_prometheus_reads(client: TestClient) -> None:
    client.post("/v1/samples", json={"n": 3})
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = {family.name for family in text_string_to_metric_families(response.text)}
    assert families >= {
        "ddaebm_http_requests",
        "ddaebm_http_request_duration_seconds",
        "ddaebm_queue_images",
        "ddaebm_batch_images",
        "ddaebm_inference_seconds",
        "ddaebm_images_sampled",
        "ddaebm_images_scored",
        "ddaebm_ood_p_value",
        "ddaebm_drift_log_martingale",
        "ddaebm_rejected",
        "ddaebm_model_info",
        "process_resident_memory_bytes",
    }


def test_metrics_tell_what_is_loaded_what_waits_and_how_it_was_batched(client: TestClient, engine: FakeEngine) -> None:
    assert metric(client, "ddaebm_model_info", model="fake", digest=engine.digest, backend="fake-cpu") == 1
    with ThreadPoolExecutor() as pool, engine.blocked():
        first = pool.submit(client.post, "/v1/samples", json={})
        assert engine.entered.wait(PATIENCE)
        second = pool.submit(client.post, "/v1/samples", json={"n": 9})
        wait_until(lambda: metric(client, "ddaebm_queue_images") == 9)
        engine.release()
        assert first.result(PATIENCE).status_code == second.result(PATIENCE).status_code == 200
    assert metric(client, "ddaebm_queue_images") == 0
    assert metric(client, "ddaebm_batch_images_count", operation="sample") == 2
    assert metric(client, "ddaebm_batch_images_sum", operation="sample") == 10
    assert metric(client, "ddaebm_inference_seconds_count", operation="sample") == 2


def test_times_are_in_seconds_and_in_server_timing_in_milliseconds(client: TestClient, engine: FakeEngine) -> None:
    with ThreadPoolExecutor() as pool, engine.blocked():
        began = time.perf_counter()
        request = pool.submit(client.post, "/v1/samples", json={"n": 7})
        assert engine.entered.wait(PATIENCE)
        entered = time.perf_counter()
        wait_until(lambda: time.perf_counter() - entered > 0.05)
        engine.release()
        response = request.result(PATIENCE)
    longest = time.perf_counter() - began
    timings = dict(entry.split(";dur=") for entry in response.headers["server-timing"].split(", "))
    assert 0.05 <= float(timings["infer"]) / 1e3 <= longest
    for name, labels in (("ddaebm_inference_seconds", {"operation": "sample"}),
                         ("ddaebm_http_request_duration_seconds", {"route": "/v1/samples"})):  # fmt: skip
        assert 0.05 <= metric(client, f"{name}_sum", **labels) <= longest
        assert metric(client, f"{name}_bucket", le="0.05", **labels) == 0
        assert metric(client, f"{name}_bucket", le="+Inf", **labels) == 1


def test_a_probe_that_says_no_is_not_work_refused(client: TestClient) -> None:
    service_of(client).runner.draining = True
    for path in ("/readyz", "/health"):
        assert client.get(path).status_code == 503
    assert metric(client, "ddaebm_rejected_total") == 0
