"""Read the files of compose, Prometheus and Grafana as these programs read them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DASHBOARD = DOCKER / "grafana" / "dashboards" / "ddaebm.json"

_VARIABLE_QUERY = re.compile(r"label_values\((?:(.+), )?(\w+)\)")


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def read_dashboard() -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return dashboard


def panels() -> list[dict[str, Any]]:
    """Return the panels that show something; rows are only headings."""
    return [panel for panel in read_dashboard()["panels"] if panel["type"] != "row"]


def panel_queries() -> Iterator[tuple[str, str]]:
    """(panel's title and query's letter, PromQL with Grafana's variables in it)."""
    for panel in panels():
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]


def dashboard_queries() -> dict[str, str]:
    """PromQL of panels, annotations and variables, by where it stands."""
    dashboard = read_dashboard()
    queries = dict(panel_queries())
    queries |= {f"annotation {item['name']}": item["expr"] for item in dashboard["annotations"]["list"]}
    for variable in dashboard["templating"]["list"]:
        selector, label = _VARIABLE_QUERY.fullmatch(variable["query"]["query"]).groups()  # type: ignore[union-attr]
        queries[f"variable {variable['name']}"] = f"count by ({label}) ({selector})"
    return queries


def alert_rules() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for group in read_yaml(DOCKER / "alerts.yml")["groups"] for rule in group["rules"]}


def substitute(expr: str, rate_interval: str = "1m") -> str:
    """`expr` as Grafana sends it, with everything chosen."""
    variables = {"job": "ddaebm", "instance": ".*", "model": ".*", "__rate_interval": rate_interval}
    return re.sub(r"\$(\w+)", lambda found: variables[found[1]], expr)
