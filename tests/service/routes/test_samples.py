"""POST /v1/samples: what comes out, and what every bad request gets."""

import json
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from ddaebm.model.images.encode import make_grid
from ddaebm.model.noise import MAX_SEED, image_seeds
from tests.service.conftest import (
    FakeEngine,
    check_problem,
    from_base64,
    metric,
    pixels_of,
    read_png,
)

URL = "/v1/samples"
JSON = {"content-type": "application/json"}


def sample(client: TestClient, **body: Any) -> list[dict[str, Any]]:
    response = client.post(URL, json=body)
    assert response.status_code == 200, response.text
    images: list[dict[str, Any]] = response.json()["images"]
    return images


def test_json_names_the_model_and_gives_each_image_with_its_seed(client: TestClient) -> None:
    response = client.post(URL, json={"n": 3, "seed": 7})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"model", "digest", "images"}
    assert (body["model"], body["digest"]) == ("fake", FakeEngine.digest)
    assert [image["seed"] for image in body["images"]] == image_seeds(7, 3).tolist()
    for image in body["images"]:
        assert image.keys() == {"seed", "image"}
        assert (from_base64(image["image"]) == pixels_of(image["seed"])).all()


def test_the_default_is_one_image_of_a_random_seed_that_is_returned(client: TestClient) -> None:
    (first,), (second,) = sample(client), sample(client)
    assert first["seed"] != second["seed"]
    assert 0 <= first["seed"] <= MAX_SEED
    assert sample(client, seed=first["seed"]) == [first]


def test_the_same_request_twice_gives_the_same_bytes(client: TestClient) -> None:
    answers = [client.post(URL, json={"n": 5, "seed": 3}).content for _ in range(2)]
    assert answers[0] == answers[1]


def test_each_image_of_a_batch_comes_back_for_its_own_seed(client: TestClient) -> None:
    batch = sample(client, n=4, seed=11)
    assert [sample(client, seed=image["seed"])[0] for image in batch] == batch


def test_a_list_of_seeds_gives_their_images_in_order(client: TestClient) -> None:
    seeds = [5, 0, MAX_SEED, 5]
    images = sample(client, seeds=seeds)
    assert [image["seed"] for image in images] == seeds
    assert images[0] == images[3]
    assert images[:1] == sample(client, seed=5)


def test_neighbouring_seeds_share_no_image(client: TestClient) -> None:
    first, second = ({image["seed"] for image in sample(client, n=20, seed=seed)} for seed in (1, 2))
    assert not first & second


@pytest.mark.parametrize("seed", [0, MAX_SEED])
def test_the_outermost_seeds_are_taken(client: TestClient, seed: int) -> None:
    assert sample(client, seed=seed)[0]["seed"] == seed


def test_the_largest_request_is_served_in_batches(client: TestClient, engine: FakeEngine) -> None:
    assert len(sample(client, n=1024, seed=1)) == 1024
    assert sum(rows for _, rows in engine.calls) == 1024
    assert max(rows for _, rows in engine.calls) == 64


def test_the_loaded_model_can_be_named(client: TestClient) -> None:
    assert sample(client, model="fake", seed=1) == sample(client, seed=1)


def test_png_of_one_image_is_that_image(client: TestClient) -> None:
    response = client.post(URL, json={"seed": 9}, headers={"accept": "image/png"})
    assert response.headers["content-type"] == "image/png"
    assert (read_png(response.content) == pixels_of(9)).all()


def test_png_of_several_images_is_a_grid_of_them(client: TestClient) -> None:
    response = client.post(URL, json={"n": 5, "seed": 9}, headers={"accept": "image/png"})
    images = np.stack([pixels_of(seed) for seed in image_seeds(9, 5).tolist()])
    assert (read_png(response.content) == make_grid(images)).all()


def test_images_made_are_counted(client: TestClient) -> None:
    sample(client, n=3)
    assert metric(client, "ddaebm_images_sampled_total", model="fake") == 3


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("*/*", "application/json"),
        ("", "application/json"),
        ("application/json", "application/json"),
        ("image/png", "image/png"),
        ("IMAGE/PNG", "image/png"),
        ("image/*", "image/png"),
        ("application/*", "application/json"),
        ("application/json, image/png", "application/json"),
        ("application/json;q=0.5, image/png", "image/png"),
        ("application/json;q=0.5, image/png;q=0.4", "application/json"),
        ("image/png;q=0.001", "image/png"),
        ("image/png;q=0, */*", "application/json"),
        ("application/json;q=0, */*;q=0.1", "image/png"),
        ("*/*;q=0.9, application/json;q=0.1", "image/png"),
        ("image/*;q=0.2, image/png;q=0.8, application/json;q=0.5", "image/png"),
        ("text/html, application/xhtml+xml, */*;q=0.8", "application/json"),
        ("image/png ; q=0.9 , application/json ; q=0.3", "image/png"),
        ("image/png;charset=x;q=0.3, application/json;q=0.2", "image/png"),
        ("application/json;q=broken, image/png;q=0.1", "image/png"),
        ("application/json;q=nan, image/png;q=0.1", "image/png"),
        ("application/zip", "application/zip"),
        ("application/x-npy", "application/x-npy"),
        ("application/zip, application/x-npy;q=0.9, */*;q=0.1", "application/zip"),
    ],
)
def test_accept_chooses_the_media_type(client: TestClient, accept: str, expected: str) -> None:
    response = client.post(URL, json={"seed": 1}, headers={"accept": accept})
    assert (response.status_code, response.headers["content-type"]) == (200, expected)


@pytest.mark.parametrize(
    "accept", ["text/html", "image/jpeg", "*/*;q=0", "application/json;q=0", "image/png;q=0.0", "nonsense", ";;,,"]
)
def test_nothing_acceptable_is_406_and_nothing_is_computed(client: TestClient, engine: FakeEngine, accept: str) -> None:
    response = client.post(URL, json={"seed": 1}, headers={"accept": accept})
    check_problem(response, 406, "not-acceptable")
    assert not engine.calls


def test_an_accept_header_longer_than_any_is_refused(client: TestClient) -> None:
    response = client.post(URL, json={}, headers={"accept": "a/b," * 2000})
    check_problem(response, 400, "bad-accept")


def test_what_the_client_sent_is_not_echoed_at_length(client: TestClient) -> None:
    response = client.post(URL, json={"x" * 50_000: 1})
    check_problem(response, 422, "invalid-request")
    assert len(response.content) < 2_000


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json"]
)
def test_a_body_that_is_not_called_json_is_415(client: TestClient, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    check_problem(client.post(URL, content=b'{"seed": 1}', headers=headers), 415, "unsupported-media-type")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_may_be_called_so_in_every_allowed_way(client: TestClient, content_type: str) -> None:
    assert client.post(URL, content=b"{}", headers={"content-type": content_type}).status_code == 200


BAD_BODIES: dict[str, tuple[bytes, int]] = {
    "empty": (b"", 422),
    "truncated": (b'{"n": 1', 400),
    "words": (b"one image, please", 400),
    "not UTF-8": (b'{"model": "\xff\xfe"}', 400),
    "deeply nested": (b"[" * 20_000 + b"]" * 20_000, 400),
    "deeply nested field": (b'{"n": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", 400),
    "integer of 5,000 digits": (b'{"n": ' + b"9" * 5_000 + b"}", 400),
    "null": (b"null", 422),
    "list": (b"[1]", 422),
    "string": (b'"n"', 422),
    "NaN": (b'{"n": NaN}', 422),
    "Infinity": (b'{"seed": Infinity}', 422),
    "n = 0": (b'{"n": 0}', 422),
    "n negative": (b'{"n": -1}', 422),
    "n = 1025": (b'{"n": 1025}', 422),
    "n = 10^9": (b'{"n": 1000000000}', 422),
    "n of 400 digits": (b'{"n": ' + b"9" * 400 + b"}", 422),
    "n fractional": (b'{"n": 1.5}', 422),
    "n a string": (b'{"n": "4"}', 422),
    "n a boolean": (b'{"n": true}', 422),
    "n null": (b'{"n": null}', 422),
    "seed negative": (b'{"seed": -1}', 422),
    "seed too large": (b'{"seed": 9007199254740992}', 422),
    "seed a string": (b'{"seed": "1"}', 422),
    "unknown field": (b'{"count": 4}', 422),
    "seeds with n": (b'{"seeds": [1], "n": 1}', 422),
    "seeds with seed": (b'{"seeds": [1], "seed": 1}', 422),
    "seeds empty": (b'{"seeds": []}', 422),
    "seeds too many": (json.dumps({"seeds": [1] * 1025}).encode(), 422),
    "seeds negative": (b'{"seeds": [1, -1]}', 422),
    "seeds too large": (b'{"seeds": [9007199254740992]}', 422),
    "seeds nested": (b'{"seeds": [[1]]}', 422),
    "seeds of strings": (b'{"seeds": ["1"]}', 422),
    "model a number": (b'{"model": 3}', 422),
    "best_of = 0": (b'{"best_of": 0}', 422),
    "best_of = 65": (b'{"best_of": 65}', 422),
    "best_of too many in all": (b'{"n": 1024, "best_of": 3}', 422),
    "best_of with seeds": (b'{"seeds": [1], "best_of": 2}', 422),
    "include of something else": (b'{"include": ["everything"]}', 422),
    "include twice": (b'{"include": ["scores", "scores"]}', 422),
    "include no list": (b'{"include": "scores"}', 422),
    "field a lone surrogate": (b'{"\\ud800": 1}', 422),
    "unknown model": (b'{"model": "nobody"}', 404),
    "model a lone surrogate": (b'{"model": "\\ud800"}', 404),
    "hostile model": (b'{"model": "../\\u0000\\n<script>"}', 404),
}


@pytest.mark.parametrize(("body", "status"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_bad_body_gets_its_problem_and_nothing_is_computed(
    client: TestClient, engine: FakeEngine, body: bytes, status: int
) -> None:
    problem = check_problem(client.post(URL, content=body, headers=JSON), status)
    assert problem["instance"] == URL
    assert not engine.calls


@pytest.mark.parametrize(
    ("body", "field"),
    [({"n": 0}, "n"), ({"seed": -1}, "seed"), ({"count": 4}, "count"), ({"seeds": ["x"]}, "seeds.0"), (None, "body")],
)
def test_a_problem_says_which_field_is_wrong(client: TestClient, body: Any, field: str) -> None:
    problem = check_problem(client.post(URL, content=json.dumps(body).encode(), headers=JSON), 422, "invalid-request")
    assert [error["field"] for error in problem["errors"]] == [field]
    assert problem["detail"].startswith(f"{field}: ")


def test_an_unknown_model_is_told_what_is_loaded(client: TestClient) -> None:
    problem = check_problem(client.post(URL, json={"model": "nobody"}), 404, "unknown-model")
    assert "fake" in problem["detail"]
