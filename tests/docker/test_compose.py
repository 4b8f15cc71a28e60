"""docker-compose.yml: what it mounts is there, and nothing may do more than it needs."""

from pathlib import PurePosixPath
from typing import Any

import pytest

from tests.docker.conftest import DASHBOARD, DOCKER, ROOT, read_yaml

SERVICES: dict[str, dict[str, Any]] = read_yaml(ROOT / "docker-compose.yml")["services"]


def binds(name: str) -> dict[str, str]:
    """Path inside -> path of this folder, of what is mounted read-only."""
    volumes = [volume.split(":") for volume in SERVICES[name].get("volumes", [])]
    return {inside: outside for outside, inside, mode in (v for v in volumes if v[0].startswith(".")) if mode == "ro"}


def mounted(name: str, inside: str) -> bytes:
    """Contents of the file that `name` sees at `inside`."""
    for target, source in binds(name).items():
        if PurePosixPath(inside).is_relative_to(target):
            return (ROOT / source / PurePosixPath(inside).relative_to(target)).read_bytes()
    raise AssertionError(f"{inside} is not mounted read-only in {name}")


def test_the_services_are_these() -> None:
    assert list(SERVICES) == ["ddaebm", "prometheus", "grafana"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined_and_local(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["mem_limit"]
    assert service["ports"]
    assert all(port.startswith("127.0.0.1:${") for port in service["ports"])
    if "image" in service:
        tag = service["image"].rpartition(":")[2]
        assert tag.lstrip("v").count(".") == 2, "pinned to a version"


@pytest.mark.parametrize("name", SERVICES)
def test_files_of_this_folder_are_mounted_read_only_and_exist(name: str) -> None:
    ours = [volume for volume in SERVICES[name].get("volumes", []) if volume.startswith(".")]
    assert len(ours) == len(binds(name))
    assert all((ROOT / source).exists() for source in binds(name).values())


def test_prometheus_finds_its_rules_and_the_service() -> None:
    config = read_yaml(DOCKER / "prometheus.yml")
    assert mounted("prometheus", "/etc/prometheus/prometheus.yml") == (DOCKER / "prometheus.yml").read_bytes()
    for rules in config["rule_files"]:
        assert mounted("prometheus", f"/etc/prometheus/{rules}")
    (job,) = config["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    assert target == "ddaebm:" + SERVICES["ddaebm"]["ports"][0].rpartition(":")[2]


def test_grafana_finds_its_data_source_and_dashboard() -> None:
    provisioning = DOCKER / "grafana" / "provisioning"
    for path in provisioning.glob("*/*.yml"):
        inside = f"/etc/grafana/provisioning/{path.relative_to(provisioning)}"
        assert mounted("grafana", inside) == path.read_bytes()
    (source,) = read_yaml(provisioning / "datasources" / "prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:" + SERVICES["prometheus"]["ports"][0].rpartition(":")[2]
    assert source["jsonData"]["timeInterval"] == read_yaml(DOCKER / "prometheus.yml")["global"]["scrape_interval"]
    (provider,) = read_yaml(provisioning / "dashboards" / "ddaebm.yml")["providers"]
    assert mounted("grafana", f"{provider['options']['path']}/{DASHBOARD.name}") == DASHBOARD.read_bytes()
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert mounted("grafana", home) == DASHBOARD.read_bytes()


def test_whoever_looks_at_grafana_can_only_look_and_it_calls_nobody() -> None:
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"  # else admin with a known password
    for name in (
        "AUTH_BASIC_ENABLED", "USERS_ALLOW_SIGN_UP", "ANALYTICS_REPORTING_ENABLED", "ANALYTICS_CHECK_FOR_UPDATES",
        "ANALYTICS_CHECK_FOR_PLUGIN_UPDATES", "NEWS_NEWS_FEED_ENABLED", "SNAPSHOTS_EXTERNAL_ENABLED",
    ):  # fmt: skip
        assert environment[f"GF_{name}"] == "false"
