"""GET /v1/models: what is loaded, and how far its verdicts can be trusted."""

import dataclasses

import pytest
from starlette.testclient import TestClient

from ddaebm.model.ood.conformal import false_alarm_interval
from tests.service.conftest import FakeEngine, MakeClient, check_problem


def test_the_list_holds_what_one_model_says_of_itself(client: TestClient) -> None:
    (listed,) = client.get("/v1/models").json()["models"]
    assert listed == client.get("/v1/models/fake").json()
    assert listed["name"] == "fake"
    assert listed["digest"] == FakeEngine.digest
    assert listed["backend"] == "fake-cpu"
    assert listed["num_steps"] == 4
    assert listed["preprocessing"] == {"height": 8, "width": 6, "channels": 1, "resize_filter": "bicubic"}


def test_calibration_says_what_an_alpha_is_worth(client: TestClient) -> None:
    calibration = client.get("/v1/models/fake").json()["calibration"]
    assert (calibration["size"], calibration["smallest_p"]) == (99, 0.01)
    intervals = calibration["false_alarm_intervals"]
    assert [interval["alpha"] for interval in intervals] == [0.01, 0.05, 0.1]
    for interval in intervals:
        assert (interval["low"], interval["high"]) == false_alarm_interval(interval["alpha"], 99)
        assert 0 < interval["low"] < interval["alpha"] < interval["high"] < 1


def test_an_alpha_that_can_never_fire_has_no_interval(make_client: MakeClient, engine: FakeEngine) -> None:
    engine.scorer = dataclasses.replace(engine.scorer, calibration_scores=engine.scorer.calibration_scores[:30])
    intervals = make_client().get("/v1/models/fake").json()["calibration"]["false_alarm_intervals"]
    assert [interval["alpha"] for interval in intervals] == [0.05, 0.1]


@pytest.mark.parametrize("name", ["nobody", "%2e%2e", "%00", "%ED%A0%80", "%F0%9F%90%88", "x" * 5_000])
def test_an_unknown_name_is_404(client: TestClient, name: str) -> None:
    check_problem(client.get(f"/v1/models/{name}"), 404, "unknown-model")


def test_the_intervals_are_computed_once(make_client: MakeClient) -> None:
    client = make_client()
    client.get("/v1/models")
    before = false_alarm_interval.cache_info().misses
    assert client.get("/v1/models").json() == client.get("/v1/models").json()
    assert false_alarm_interval.cache_info().misses == before
