"""Samples in their other forms: npy, zip, with scores, the best of many, and one by GET."""

import base64
import io
import json
import time
import zipfile
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from ddaebm.model.noise import image_seeds
from tests.service.conftest import FakeEngine, MakeClient, check_problem, files, metric, pixels_of, read_png
from tests.service.routes.test_samples import URL, sample


def test_npy_is_the_images_as_one_array(client: TestClient) -> None:
    response = client.post(URL, json={"n": 5, "seed": 9}, headers={"accept": "application/x-npy"})
    images = np.load(io.BytesIO(response.content))
    assert images.dtype == np.uint8
    assert (images == np.stack([pixels_of(seed) for seed in image_seeds(9, 5).tolist()])).all()


@pytest.mark.parametrize("include", [[], ["scores"]])
def test_zip_is_a_png_a_seed_and_what_json_says_of_them(client: TestClient, include: list[str]) -> None:
    body = {"n": 5, "seed": 9, "include": include}
    response = client.post(URL, json=body, headers={"accept": "application/zip"})
    as_json = client.post(URL, json=body).json()
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        about = json.loads(archive.read("samples.json"))
        assert (about["model"], about["digest"]) == (as_json["model"], as_json["digest"])
        assert len(archive.namelist()) == 6
        for row, image in zip(about["images"], as_json["images"], strict=True):
            assert archive.read(row.pop("file")) == base64.b64decode(image.pop("image"))
            assert row == image
    assert client.post(URL, json=body, headers={"accept": "application/zip"}).content == response.content


def test_scores_are_those_that_the_images_get_when_they_are_sent(client: TestClient) -> None:
    images = sample(client, n=4, seed=2, include=["scores"])
    uploads = files(*(base64.b64decode(image["image"]) for image in images))
    for image, result in zip(images, client.post("/v1/scores", files=uploads).json()["results"], strict=True):
        assert image.keys() == {"seed", "image", "energies", "ood_score", "p_value"}
        assert all(image[name] == result[name] for name in ("energies", "ood_score", "p_value"))


@pytest.mark.parametrize("accept", ["image/png", "application/x-npy"])
def test_scores_have_no_place_among_pixels(client: TestClient, engine: FakeEngine, accept: str) -> None:
    response = client.post(URL, json={"include": ["scores"]}, headers={"accept": accept})
    check_problem(response, 422, "invalid-request")
    assert not engine.calls


def test_best_of_keeps_the_lowest_scores_in_the_order_drawn(client: TestClient, engine: FakeEngine) -> None:
    drawn = sample(client, n=12, seed=5, include=["scores"])
    kept = sample(client, n=4, seed=5, best_of=3, include=["scores"])
    lowest = sorted(image["ood_score"] for image in drawn)[:4]
    assert kept == [image for image in drawn if image["ood_score"] in lowest]
    assert sample(client, seed=kept[1]["seed"])[0]["image"] == kept[1]["image"]

    engine.calls.clear()
    plain = sample(client, n=4, seed=5, best_of=3)
    assert [image["seed"] for image in plain] == [image["seed"] for image in kept]
    assert plain[0].keys() == {"seed", "image"}
    assert engine.calls == [("sample", 12), ("score", 12)]


def test_sampling_and_scoring_share_one_deadline(make_client: MakeClient, engine: FakeEngine) -> None:
    client = make_client(deadline_seconds=0.5)
    original = engine.sample

    def slow(seeds: Any) -> Any:
        time.sleep(0.3)
        return original(seeds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "sample", slow)
        patch.setattr(engine, "score", lambda images: (time.sleep(0.3), FakeEngine.score(engine, images))[1])
        check_problem(client.post(URL, json={"best_of": 2}), 504, "deadline")


def test_get_gives_the_image_of_a_seed(client: TestClient) -> None:
    response = client.get("/v1/samples/9.png")
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    assert (read_png(response.content) == pixels_of(9)).all()
    assert response.headers["etag"] == f'W/"{FakeEngine.digest[:16]}-9"'
    assert response.headers["cache-control"] == "no-cache"
    assert client.get("/v1/samples/9.png", params={"model": "fake"}).content == response.content
    assert metric(client, "ddaebm_images_sampled_total", model="fake") == 2


def test_head_says_what_get_would_and_computes_nothing(client: TestClient, engine: FakeEngine) -> None:
    got = client.get("/v1/samples/9.png").headers
    engine.calls.clear()
    for path, status in (("9.png", 200), ("9.png?digest=0f", 404), ("x.png", 422)):
        assert client.head(f"/v1/samples/{path}").status_code == status
    head = client.head("/v1/samples/9.png").headers
    assert {name: head[name] for name in ("etag", "cache-control", "content-type")} == {
        name: got[name] for name in ("etag", "cache-control", "content-type")
    }
    assert "content-length" not in head
    assert client.head("/v1/samples/9.png", headers={"if-none-match": head["etag"]}).status_code == 304
    assert not engine.calls


def test_get_with_the_digest_may_be_kept_for_ever(client: TestClient) -> None:
    response = client.get("/v1/samples/9.png", params={"digest": FakeEngine.digest})
    assert "immutable" in response.headers["cache-control"]
    check_problem(client.get("/v1/samples/9.png", params={"digest": "f0" * 32}), 404, "unknown-digest")


@pytest.mark.parametrize("wrap", ["{}", '"other", {}', "{} , W/x", "*"])
def test_get_computes_nothing_for_who_has_it(client: TestClient, engine: FakeEngine, wrap: str) -> None:
    etag = client.get("/v1/samples/9.png").headers["etag"]
    engine.calls.clear()
    response = client.get("/v1/samples/9.png", headers={"if-none-match": wrap.format(etag)})
    assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", etag)
    assert not engine.calls
    assert client.get("/v1/samples/8.png", headers={"if-none-match": etag}).status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"{2**53}.png", 422),
        ("-1.png", 422),
        ("x.png", 422),
        ("1.5.png", 422),
        ("5.0.png", 422),
        ("05.png", 422),
        ("+5.png", 422),
        ("1_0.png", 422),
        (".png", 404),
        ("1.jpg", 404),
        ("1", 404),
        ("1.png?model=nobody", 404),
        ("9" * 4000 + ".png", 422),
    ],
)
def test_get_of_what_is_no_seed_gets_its_problem(client: TestClient, path: str, status: int) -> None:
    check_problem(client.get(f"/v1/samples/{path}"), status)
