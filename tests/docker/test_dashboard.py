"""The dashboard is one that Grafana can show and a reader can use."""

from collections import Counter
from typing import Any

import pytest

from tests.docker.conftest import DOCKER, dashboard_queries, panels, read_dashboard, read_yaml

PANELS = {panel["title"]: panel for panel in panels()}


def test_grafana_knows_it_and_its_version() -> None:
    dashboard = read_dashboard()
    assert dashboard["uid"] == dashboard["title"] == "ddaebm"
    assert dashboard["schemaVersion"] >= 39
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["job", "instance", "model"]
    assert [p["title"] for p in dashboard["panels"] if p["type"] == "row"] == [
        "At a glance", "Traffic", "Inference", "OOD", "Process",
    ]  # fmt: skip


def test_no_two_panels_have_one_id_or_title_or_place() -> None:
    every = read_dashboard()["panels"]
    assert max(Counter(panel["id"] for panel in every).values()) == 1
    assert len(PANELS) == len(panels())
    cells: Counter[tuple[int, int]] = Counter()
    for panel in every:
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        assert 0 <= x < x + w <= 24, panel["title"]
        cells.update((column, line) for column in range(x, x + w) for line in range(y, y + h))
    assert max(cells.values()) == 1
    assert sorted({line for _, line in cells}) == list(range(max(line for _, line in cells) + 1)), "an empty line"


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)
def test_a_panel_says_what_it_shows_and_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert len(panel["description"]) > 40
    assert "\n" not in panel["description"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    if panel["type"] == "heatmap":  # its own options beat the field's unit
        assert panel["options"]["cellValues"]["unit"]
        assert panel["options"]["yAxis"]["unit"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_every_query_goes_to_the_provisioned_data_source() -> None:
    (source,) = read_yaml(DOCKER / "grafana" / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    reference = {"type": source["type"], "uid": source["uid"]}
    dashboard = read_dashboard()
    asking = [*panels(), *dashboard["annotations"]["list"], *dashboard["templating"]["list"]]
    asking += [target for panel in panels() for target in panel["targets"]]
    assert [item["datasource"] for item in asking] == [reference] * len(asking)


def test_every_query_follows_the_variables_and_the_resolution() -> None:
    for where, expr in dashboard_queries().items():
        if where != "variable job":
            assert expr.count("{job='$job'") == expr.count("{"), where
        assert ("[" in expr) == ("[$__rate_interval]" in expr), where
