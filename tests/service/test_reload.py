"""Several bundles in one service, and new ones in their place: all at once, or not at all."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from ddaebm.model.errors import BundleError, ConfigError
from ddaebm.service.app import create_app
from ddaebm.service.registry import Engines, load_engines
from ddaebm.service.settings import Settings
from ddaebm.service.state import Service
from tests.service.conftest import PATIENCE, FakeEngine, check_problem, metric, png


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = create_app(Settings(), FakeEngine("first"), FakeEngine("second"))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def service_of(client: TestClient) -> Service:
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    return service


def reload(client: TestClient) -> None:
    assert client.portal
    client.portal.call(service_of(client).registry.reload)


def names(client: TestClient) -> list[str]:
    return [model["name"] for model in client.get("/v1/models").json()["models"]]


def test_the_model_is_chosen_by_name_and_the_first_is_the_default(client: TestClient) -> None:
    assert names(client) == ["first", "second"]
    for asked, answered in [(None, "first"), ("first", "first"), ("second", "second")]:
        body = {"seed": 1} | ({"model": asked} if asked else {})
        query = {"model": asked} if asked else {}
        assert client.post("/v1/samples", json=body).json()["model"] == answered
        assert client.post("/v1/scores", files={"images": png()}, params=query).json()["model"] == answered
    assert client.get("/v1/models/second").json()["name"] == "second"
    problem = check_problem(client.get("/v1/models/third"), 404, "unknown-model")
    assert "first, second" in problem["detail"]


def test_a_reload_replaces_all_engines_at_once(client: TestClient) -> None:
    service_of(client).registry.load = lambda loaded: {"third": FakeEngine("third")}
    reload(client)
    assert names(client) == ["third"]
    assert metric(client, "ddaebm_model_info", model="third") == 1
    assert metric(client, "ddaebm_model_info", model="first") == 0
    assert metric(client, "ddaebm_reloads_total", outcome="ok") == 1


@pytest.mark.parametrize("error", [BundleError("broken"), OSError("gone"), RuntimeError("our own fault")])
def test_a_reload_that_fails_leaves_everything_as_it_was(client: TestClient, error: Exception) -> None:
    def fail(loaded: Engines) -> Engines:
        raise error

    before = service_of(client).registry.engines
    service_of(client).registry.load = fail
    reload(client)
    assert service_of(client).registry.engines is before
    assert client.post("/v1/samples", json={}).status_code == 200
    assert metric(client, "ddaebm_reloads_total", outcome="failed") == 1
    assert metric(client, "ddaebm_model_info", model="first") == 1


def test_the_drift_of_a_model_lasts_as_long_as_its_bundle(client: TestClient) -> None:
    client.post("/v1/scores", files=[("images", png(200 + value)) for value in range(20)])
    drifted = metric(client, "ddaebm_drift_log_martingale", model="first")
    assert drifted > 1
    service_of(client).registry.load = lambda loaded: {"first": FakeEngine("first")}
    reload(client)
    assert metric(client, "ddaebm_drift_log_martingale", model="first") == drifted
    other = FakeEngine("first")
    other.digest = "1f" * 32
    service_of(client).registry.load = lambda loaded: {"first": other}
    reload(client)
    assert metric(client, "ddaebm_drift_log_martingale", model="first") == 0


def test_a_request_that_waits_is_answered_by_the_engine_that_it_began_with(client: TestClient) -> None:
    first = service_of(client).registry.engines["first"]
    assert isinstance(first, FakeEngine)
    service_of(client).registry.load = lambda loaded: {"third": FakeEngine("third")}
    answers: list[Any] = []
    with first.blocked():
        thread = threading.Thread(target=lambda: answers.append(client.post("/v1/samples", json={"seed": 4})))
        thread.start()
        assert first.entered.wait(PATIENCE)
        reload(client)
        assert names(client) == ["third"]
    thread.join(PATIENCE)
    assert answers[0].json()["model"] == "first"


def test_reloads_come_one_after_the_other_and_many_at_once_are_two(client: TestClient) -> None:
    running: list[int] = []

    def load(loaded: Engines) -> Engines:
        running.append(1)
        assert len(running) == 1
        threading.Event().wait(0.05)
        running.pop()
        return loaded

    async def many() -> None:
        await asyncio.gather(*(service_of(client).registry.reload() for _ in range(20)))

    service_of(client).registry.load = load
    assert client.portal
    client.portal.call(many)
    assert 1 <= metric(client, "ddaebm_reloads_total", outcome="ok") <= 2


def test_bundles_are_loaded_by_name_and_an_unchanged_one_is_kept(debug_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(debug_bundle, tmp_path / "copy")
    settings = Settings(bundle=("fashion-mnist", str(debug_bundle)), device="cpu", threads=1)
    engines = load_engines(settings)
    assert list(engines) == ["fashion-mnist", "debug"]
    again = load_engines(settings, engines)
    assert all(again[name] is engines[name] for name in engines)
    with pytest.raises(ConfigError, match="two bundles are named 'debug'"):
        load_engines(Settings(bundle=(str(debug_bundle), str(tmp_path / "copy")), device="cpu"))
