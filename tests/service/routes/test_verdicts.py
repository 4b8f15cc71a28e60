"""POST /v1/scores: verdicts at alpha itself, and heatmaps that belong to their images."""

import pytest
from starlette.testclient import TestClient

from tests.service.conftest import FakeEngine, from_base64, metric, png
from tests.service.routes.test_scores import score


def test_each_image_gets_its_own_heatmap(client: TestClient) -> None:
    images = [png(0), png(1), png(3), b"no image", png(200)]
    together = score(client, *images, heatmap=True)["results"]
    alone = [score(client, image, heatmap=True)["results"][0] for image in images if image != b"no image"]
    assert [result["heatmap"] for result in together if "heatmap" in result] == [one["heatmap"] for one in alone]
    heat = [from_base64(one["heatmap"])[0, 0].astype(int) - from_base64(one["heatmap"])[-1, -1] for one in alone]
    assert not heat[0].any()
    assert heat[-1].any()


def test_an_image_at_alpha_is_an_alarm_and_counted_as_one(client: TestClient) -> None:
    """The p-value of level 95 is (1 + 99 - 95)/100."""
    (result,) = score(client, png(95), alpha=0.05, fdr=0.05)["results"]
    assert (result["p_value"], result["is_ood"], result["selected"]) == (0.05, True, True)
    assert metric(client, "ddaebm_images_scored_total", model="fake", verdict="ood") == 1
    (result,) = score(client, png(94), alpha=0.05)["results"]
    assert (result["p_value"], result["is_ood"]) == (0.06, False)
    assert metric(client, "ddaebm_images_scored_total", model="fake", verdict="in") == 1
    assert metric(client, "ddaebm_ood_p_value_bucket", model="fake", le="0.05") == 1


def test_alpha_may_be_the_smallest_p(client: TestClient) -> None:
    assert score(client, png(255), alpha=0.01, fdr=0.01)["results"][0]["is_ood"] is True


def test_the_reason_is_told_with_the_box_of_a_spot(client: TestClient) -> None:
    whole, spot = score(client, png(249), png(251))["results"]
    assert (whole["because"], whole.get("box")) == ("whole", None)
    assert (spot["because"], spot["box"]) == ("spot", [2, 1, 3, 4])
    whole, spot = score(client, png(249), png(251), heatmap=True)["results"]
    assert (whole["because"], spot["box"]) == ("whole", [2, 1, 3, 4])


def test_a_gate_tells_what_it_catches(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    (model,) = client.get("/v1/models").json()["models"]
    assert (model["form"], "fit" in model) == ("whole", False)
    row = {"fault": "hole", "severity": "0.1 diameter / side", "auroc": 0.9, "caught": 0.5}
    fit = {"fitted": 200, "calibrated": 100, "alpha": 0.05, "power": [row]}
    monkeypatch.setattr(FakeEngine, "fit", {**fit, "seed": 3}, raising=False)
    assert client.get("/v1/models/fake").json()["fit"] == fit
