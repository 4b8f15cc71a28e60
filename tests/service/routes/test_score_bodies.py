"""POST /v1/scores in its four bodies, with their limits, and with a heatmap."""

import base64
import json
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from ddaebm.model.images.contract import Contract
from ddaebm.model.images.decode import Decoded, convert
from ddaebm.model.images.encode import encode_png
from tests.service.conftest import FakeEngine, MakeClient, check_problem, files, from_base64, png
from tests.service.routes.test_scores import URL, npy, score


def post(client: TestClient, content: bytes, content_type: str, **query: Any) -> list[dict[str, Any]]:
    response = client.post(URL, content=content, headers={"content-type": content_type}, params=query)
    assert response.status_code == 200, response.text
    results: list[dict[str, Any]] = response.json()["results"]
    return results


@pytest.mark.parametrize("shape", [(8, 6, 1), (20, 31, 1), (8, 6, 3), (33, 17, 3)])
def test_the_four_bodies_give_the_same_result_for_the_same_image(client: TestClient, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (2, *shape), dtype=np.uint8)
    data = [encode_png(image) for image in pixels]
    bodies = {
        "form": score(client, *data, heatmap=True)["results"],
        "json": post(client, as_json(data), "application/json", heatmap=True),
        "npy": post(client, npy(pixels), "application/x-npy", heatmap=True),
        "raw": [post(client, image, "image/png", heatmap=True)[0] for image in data],
    }
    names = {body: [result.pop("name") for result in results] for body, results in bodies.items()}
    assert names == {"form": ["0.png", "1.png"], "json": ["0", "1"], "npy": ["0", "1"], "raw": ["0", "0"]}
    bodies["raw"][1]["index"] = 1
    assert all(results == bodies["form"] for results in bodies.values())
    assert bodies["form"][0].keys() >= {"energies", "ood_score", "p_value", "is_ood", "resized", "heatmap"}


def as_json(data: list[bytes]) -> bytes:
    return json.dumps({"images": [base64.b64encode(item).decode() for item in data]}).encode()


def test_an_array_without_a_channel_axis_is_grey(client: TestClient) -> None:
    pixels = np.full((2, 8, 6), 7, np.uint8)
    assert post(client, npy(pixels), "application/x-npy") == post(client, npy(pixels[..., None]), "application/x-npy")


def test_decoding_stops_between_images_when_the_deadline_has_passed(
    client: TestClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 10 * len(decoded))

    def slow(image: Image.Image, contract: Contract) -> Decoded:
        """Takes ten seconds, by the clock of the deadline."""
        decoded.append(1)
        return convert(image, contract)

    monkeypatch.setattr("ddaebm.service.decoding.quick.convert", slow)
    monkeypatch.setattr("ddaebm.service.http.context.time", clock)
    response = client.post(URL, files=files(*[png()] * 30), headers={"x-request-timeout": "25"})
    check_problem(response, 504, "deadline")
    assert len(decoded) == 3
    assert not engine.calls


def test_base64_may_have_line_breaks_and_a_data_prefix(client: TestClient) -> None:
    plain = base64.b64encode(png(5)).decode()
    texts = [plain, base64.encodebytes(png(5)).decode(), f"data:image/png;base64,{plain}"]
    results = post(client, json.dumps({"images": texts}).encode(), "application/json")
    assert [result["ood_score"] for result in results] == [5, 5, 5]


def test_an_image_that_is_no_base64_has_an_error_in_its_place(client: TestClient) -> None:
    body = json.dumps({"images": ["%%%", base64.b64encode(png(5)).decode()]}).encode()
    first, second = post(client, body, "application/json")
    assert (first["name"], first["error"]["status"], second["ood_score"]) == ("0", 422, 5)
    assert "base64" in first["error"]["detail"]


@pytest.mark.parametrize("limit", [2, 3])
def test_the_number_of_images_is_bounded_in_every_body(make_client: MakeClient, limit: int) -> None:
    client = make_client(max_files=limit)
    for content, content_type in [(as_json([png()] * 3), "application/json"),
                                  (npy(np.zeros((3, 8, 6), np.uint8)), "application/x-npy")]:  # fmt: skip
        response = client.post(URL, content=content, headers={"content-type": content_type})
        if limit == 3:
            assert response.status_code == 200
        else:
            check_problem(response, 413, "too-many-images")


def test_a_heatmap_is_there_when_asked_for_and_is_bright_where_the_energy_sits(
    client: TestClient, engine: FakeEngine
) -> None:
    assert "heatmap" not in score(client, png(200))["results"][0]
    engine.calls.clear()
    asked = score(client, png(200), b"words", png(100), heatmap=True)["results"]
    assert engine.calls == [("explain", 2)]
    assert "heatmap" not in asked[1]
    picture = from_base64(asked[0].pop("heatmap")).astype(int)
    assert picture.shape == (8, 6, 3)
    redness = picture[..., 0] - picture[..., 2]
    assert redness[0, 0] == redness.max() > 0 == redness[7, 5]
    assert asked[0].pop("regions") == [{"box": [0, 0, 1, 1], "strength": 200.0}]
    assert asked[0] == score(client, png(200))["results"][0]


def test_regions_without_a_picture(client: TestClient, engine: FakeEngine) -> None:
    asked = score(client, png(200), regions=True)["results"][0]
    assert engine.calls == [("explain", 1)]
    assert asked.pop("regions") == [{"box": [0, 0, 1, 1], "strength": 200.0}]
    assert asked == score(client, png(200))["results"][0]
