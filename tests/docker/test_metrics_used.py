"""Dashboard and alerts ask for metrics that the service exports, by labels that they have, in PromQL that parses."""

import re
import shutil
import subprocess
from collections.abc import Set
from pathlib import Path

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from ddaebm.service.metrics import Metrics
from tests.docker.conftest import DOCKER, alert_rules, dashboard_queries, substitute

QUERIES = dashboard_queries() | {f"alert {name}": rule["expr"] for name, rule in alert_rules().items()}

_STRING = r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'"
_SELECTOR = re.compile(rf"([a-zA-Z_:][\w:]*)\s*\{{((?:{_STRING}|[^{{}}\"'])*)\}}")
_MATCHER = re.compile(rf"(\w+)\s*(?:=~|!~|!=|=)\s*(?:{_STRING})")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)")
_BARE = re.compile(r"(?<![\w.$])([a-zA-Z_:][\w:]*)\b(?!\s*\()")
_KEYWORDS = {"and", "or", "unless", "bool", "offset", "group_left", "group_right"}


def exported() -> dict[str, set[str]]:
    """Labels of every series that a scrape can hold, by its name."""
    metrics = Metrics()
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase) and metric._labelnames:
            metric.labels(*metric._labelnames)  # a metric with labels has no series before
    series: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            series.setdefault(sample.name, {"job", "instance"}).update(sample.labels)
    # Prometheus adds these itself.
    return series | {"up": {"job", "instance"}, "ALERTS": {"job", "instance", "alertname", "alertstate", "severity"}}


def selections(expr: str) -> tuple[list[tuple[str, set[str]]], set[str]]:
    """The metrics of a PromQL expression, each with the labels that choose among it; and the labels grouped by."""
    selected = [(name, set(_MATCHER.findall(matchers))) for name, matchers in _SELECTOR.findall(expr)]
    rest = re.sub(r"\[[^]]*\]", " ", _SELECTOR.sub(" ", expr))
    grouped = {label.strip() for labels in _GROUPING.findall(rest) for label in labels.split(",") if label.strip()}
    bare = [name for name in _BARE.findall(_GROUPING.sub(" ", rest)) if name not in _KEYWORDS]
    return selected + [(name, set()) for name in bare], grouped


def faults(expr: str, series: dict[str, set[str]]) -> list[str]:
    """Metrics and labels that do not exist."""
    selected, grouped = selections(expr)
    found = [f"no metric {name}" for name, _ in selected if name not in series]
    for name, labels in selected:
        found += [f"{name} has no label {label}" for label in sorted(labels - series.get(name, labels))]
    everywhere: Set[str] = set().union(*(series.get(name, set()) for name, _ in selected))
    return found + [f"nothing has the label {label}" for label in sorted(grouped - everywhere)]


@pytest.mark.parametrize("where", QUERIES)
def test_every_metric_and_label_that_is_asked_for_exists(where: str) -> None:
    assert selections(QUERIES[where])[0], "no metric found in it"
    assert faults(QUERIES[where], exported()) == []


@pytest.mark.parametrize(
    ("expr", "found"),
    [
        ("sum by (job, a) (rate(m_total{a='}', b=~\"x|y\"}[5m])) / ignoring (b) group_left sum(n) > 0.5", []),
        ("time() - m_total{a!='1'} or vector(0)", []),
        ("m_totals{a='1'}", ["no metric m_totals"]),
        ("1e3 * gone > 0", ["no metric gone"]),
        ("m_total{c='1'}", ["m_total has no label c"]),
        ("sum by (le) (n{job='x'})", ["nothing has the label le"]),
    ],
)
def test_what_does_not_exist_is_noticed(expr: str, found: list[str]) -> None:
    series = {"m_total": {"job", "a", "b"}, "n": {"job"}}
    assert faults(expr, series) == found


def test_both_outcomes_of_a_reload_are_there_before_the_first() -> None:
    registry = Metrics().registry
    outcomes = [registry.get_sample_value("ddaebm_reloads_total", {"outcome": name}) for name in ("ok", "failed")]
    assert outcomes == [0, 0]


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    assert found, "promtool is not on PATH; it comes with Prometheus"
    return found


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.system("promtool")
def test_every_query_of_the_dashboard_is_promql(promtool: str, tmp_path: Path) -> None:
    rules = [
        {"record": f"query:{i}", "expr": substitute(expr), "labels": {"where": where}}
        for i, (where, expr) in enumerate(dashboard_queries().items())
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run(promtool, "check", "rules", path)


@pytest.mark.system("promtool")
def test_the_alerts_fire_when_they_should(promtool: str) -> None:
    run(promtool, "check", "config", DOCKER / "prometheus.yml")
    run(promtool, "test", "rules", DOCKER / "alerts_test.yml")


def test_every_alert_is_tested_and_says_what_to_do() -> None:
    tests = (DOCKER / "alerts_test.yml").read_text()
    runbook = (DOCKER.parent / "docs" / "deployment.md").read_text()
    for name, rule in alert_rules().items():
        assert f'alertname="{name}"' in tests or f"alertname: {name}\n" in tests, f"{name} is never expected to fire"
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert f"| `{name}` |" in runbook, f"docs/deployment.md does not say what to do for {name}"
