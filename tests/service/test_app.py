"""The application as a whole: what it imports, how it starts and ends, and its published interface."""

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from ddaebm.model.errors import BundleMissingFileError
from ddaebm.service.app import create_app
from ddaebm.service.registry import load_engines
from ddaebm.service.settings import Settings
from tests.service.conftest import PATIENCE, FakeEngine, MakeClient, metric, wait_until

NPY = "application/x-npy"
ANSWERS = ["200", "4XX", "5XX"]
OPENAPI = {
    "/v1/samples": {"post": ANSWERS},
    "/v1/samples/{seed}.png": {"get": ["200", "304", "4XX", "5XX"]},
    "/v1/scores": {"post": ANSWERS},
    "/v1/models": {"get": ANSWERS},
    "/v1/models/{name}": {"get": ANSWERS},
    "/v2": {"get": ANSWERS},
    "/v2/health/live": {"get": ANSWERS},
    "/v2/health/ready": {"get": ANSWERS},
    "/v2/repository/index": {"post": ANSWERS},
    "/v2/models/{name}": {"get": ANSWERS},
    "/v2/models/{name}/ready": {"get": ANSWERS},
    "/v2/models/{name}/config": {"get": ANSWERS},
    "/v2/models/{name}/stats": {"get": ANSWERS},
    "/v2/models/{name}/infer": {"post": ANSWERS},
    "/livez": {"get": ANSWERS},
    "/readyz": {"get": ANSWERS},
    "/metrics": {"get": ANSWERS},
}
SCHEMAS = {
    "SampleRequest": ["best_of", "include", "model", "n", "seed", "seeds"],
    "SampleResponse": ["digest", "images", "model"],
    "SampledImage": ["energies", "image", "ood_score", "p_value", "seed"],
    "ScoreResponse": ["alpha", "calibration_size", "digest", "fdr", "model", "results"],
    "Score": [
        "because",
        "box",
        "energies",
        "energy_quantiles",
        "heatmap",
        "index",
        "is_ood",
        "name",
        "ood_score",
        "p_value",
        "regions",
        "resized",
        "selected",
    ],
    "Unreadable": ["error", "index", "name"],
    "ImageProblem": ["detail", "status", "title", "type"],
    "ModelList": ["models"],
    "ModelInfo": ["backend", "calibration", "digest", "fit", "form", "name", "num_steps", "preprocessing"],
    "Fit": ["alpha", "calibrated", "fitted", "form", "forms", "power", "side"],
    "Region": ["box", "strength"],
    "Caught": ["auroc", "caught", "fault", "severity"],
    "Preprocessing": ["channels", "height", "resize_filter", "width"],
    "Calibration": ["false_alarm_intervals", "size", "smallest_p"],
    "FalseAlarms": ["alpha", "high", "low"],
    "Status": ["status"],
}


@pytest.fixture
def openapi(client: TestClient) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/openapi.json").json()
    return document


def test_the_published_routes_are_the_approved_ones(openapi: dict[str, Any]) -> None:
    routes = {
        path: {method: sorted(operation["responses"]) for method, operation in operations.items()}
        for path, operations in openapi["paths"].items()
    }
    assert routes == OPENAPI


def test_the_published_schemas_are_the_approved_ones(openapi: dict[str, Any]) -> None:
    schemas = {name: sorted(schema["properties"]) for name, schema in openapi["components"]["schemas"].items()}
    assert schemas == SCHEMAS


def test_the_media_types_that_json_schema_cannot_tell_are_published(openapi: dict[str, Any]) -> None:
    samples, scores = (openapi["paths"][path]["post"] for path in ("/v1/samples", "/v1/scores"))
    assert list(samples["responses"]["200"]["content"]) == ["application/json", "image/png", "application/zip", NPY]
    assert list(scores["requestBody"]["content"]) == ["multipart/form-data", "application/json", "image/*", NPY]
    assert [parameter["name"] for parameter in scores["parameters"]] == ["alpha", "fdr", "heatmap", "regions", "model"]


def test_the_root_leads_to_the_docs(client: TestClient) -> None:
    response = client.get("/", follow_redirects=False)
    assert (response.status_code, response.headers["location"]) == (307, "/docs")
    assert client.get("/docs").status_code == 200


@pytest.mark.parametrize("module", ["ddaebm.service.app", "ddaebm.service.server", "ddaebm.api", "ddaebm.cli"])
def test_serving_imports_no_torch(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"torch", "accelerate", "safetensors", "sklearn"}
    assert not any(name.startswith("ddaebm.training") for name in json.loads(done.stdout))


def test_two_apps_in_one_process_do_not_share_metrics(make_client: MakeClient) -> None:
    first, second = make_client(), make_client()
    first.post("/v1/samples", json={"n": 2})
    assert metric(first, "ddaebm_images_sampled_total") == 2
    assert metric(second, "ddaebm_images_sampled_total") == 0


def test_stopping_finishes_what_waits(engine: FakeEngine) -> None:
    async def test() -> None:
        app = create_app(Settings(workers=1), engine)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            with engine.blocked():
                async with app.router.lifespan_context(app):
                    service = app.state.service
                    posts = [asyncio.create_task(client.post("/v1/samples", json={"n": 5}))]
                    assert await asyncio.to_thread(engine.entered.wait, PATIENCE)
                    posts += [asyncio.create_task(client.post("/v1/samples", json={"n": 5})) for _ in range(3)]
                    await asyncio.to_thread(wait_until, lambda: service.runner.batcher.queued == 15)
                    threading.Thread(
                        target=lambda: (wait_until(lambda: service.runner.draining), engine.release())
                    ).start()
                assert [(await post).status_code for post in posts] == [200] * 4
                assert not service.runner.batcher.alive

    asyncio.run(test())


def test_a_bundle_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(BundleMissingFileError, match="nobody"):
        load_engines(Settings(bundle=(str(tmp_path / "nobody"),)))
