"""A real Prometheus scrapes the service, and each query of the dashboard finds what was sent."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import yaml

from tests.docker.conftest import DOCKER, panel_queries, substitute
from tests.e2e.conftest import PATIENCE, Running
from tests.e2e.test_serve import noise_png, sample

FIRING = "Alerts firing A"  # a healthy service has none


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def prometheus(service: Running, tmp_path: Path) -> Iterator[httpx.Client]:
    """The HTTP interface of one that scrapes `service` every second, with our alerts loaded."""
    program = shutil.which("prometheus")
    assert program, "prometheus is not on PATH"
    config = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DOCKER / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [service.client.base_url.netloc.decode()]}]
    path, port = tmp_path / "prometheus.yml", free_port()
    path.write_text(yaml.safe_dump(config))
    with (tmp_path / "prometheus.log").open("wb") as log, ExitStack() as stack:
        process = subprocess.Popen(
            [program, f"--config.file={path}", f"--storage.tsdb.path={tmp_path / 'data'}",
             f"--web.listen-address=127.0.0.1:{port}"],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        stack.callback(process.wait, PATIENCE)
        stack.callback(process.kill)
        base = f"http://127.0.0.1:{port}"
        transport = httpx.HTTPTransport(retries=8)  # it takes a moment to listen
        yield stack.enter_context(httpx.Client(base_url=base, timeout=PATIENCE, transport=transport))


def has_data(prometheus: httpx.Client, expr: str) -> bool:
    response = prometheus.get("/api/v1/query", params={"query": substitute(expr, rate_interval="10s")})
    assert response.status_code == 200, response.text
    return any(series["value"][1] != "NaN" for series in response.json()["data"]["result"])


@pytest.mark.system("prometheus")
def test_every_panel_shows_what_happened(service: Running, prometheus: httpx.Client) -> None:
    waiting = dict(panel_queries())
    assert waiting.pop(FIRING)
    end = time.monotonic() + PATIENCE
    seed = 0
    while waiting:
        assert time.monotonic() < end, f"no data: {waiting}"
        seed += 1
        sample(service, 8, seed)
        files = {"images": ("noise.png", noise_png(seed))}
        assert service.client.post("/v1/scores", files=files).status_code == 200
        late = service.client.post("/v1/samples", json={"n": 1000}, headers={"X-Request-Timeout": "0.001"})
        assert late.status_code == 504
        time.sleep(0.2)
        waiting = {where: expr for where, expr in waiting.items() if not has_data(prometheus, expr)}
    rules = prometheus.get("/api/v1/rules").json()["data"]["groups"][0]["rules"]
    assert {rule["health"] for rule in rules} == {"ok"}
