"""POST /v1/scores: verdicts at alpha itself, and heatmaps that belong to their images."""

from starlette.testclient import TestClient

from tests.service.conftest import from_base64, metric, png
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
