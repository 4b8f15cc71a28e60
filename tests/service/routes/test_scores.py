"""POST /v1/scores: verdicts in the order sent, and an answer to everything that is no image."""

import dataclasses
import io
import math
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from tests.service.conftest import FakeEngine, MakeClient, check_problem, files, metric, png

URL = "/v1/scores"
BOMB = b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))
    for tag, data in ((b"IHDR", struct.pack(">2I5B", 50_000, 50_000, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"0")))
)
NPY_HEADER = b"{'descr': '|u1', 'fortran_order': False, 'shape': (200, 100000, 100000), }"
NPY_BOMB = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(NPY_HEADER)) + NPY_HEADER


def npy(array: NDArray[Any], pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=pickle)
    return buffer.getvalue()


def many_scans() -> bytes:
    """A progressive JPEG whose last scan is there 200 times: a few bytes each, and as much work as the image."""
    buffer = io.BytesIO()
    Image.new("L", (64, 64), 128).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * 200 + data[-2:]


UNREADABLE = {
    "empty": b"",
    "text": b"not an image",
    "html": b"<html></html>",
    "truncated": png(9, 64, 64)[:-30],
    "header alone": png()[:20],
    "noise after the signature": png()[:8] + bytes(range(256)),
}


def score(client: TestClient, *contents: bytes, **query: Any) -> dict[str, Any]:
    response = client.post(URL, files=files(*contents), params=query)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def test_every_image_is_scored_in_the_order_sent(client: TestClient) -> None:
    levels = [200, 0, 97, 3]
    body = score(client, *(png(level) for level in levels))
    results = body.pop("results")
    assert body == {"model": "fake", "digest": FakeEngine.digest, "alpha": 0.05, "calibration_size": 99}
    assert [result["index"] for result in results] == [0, 1, 2, 3]
    assert [result["name"] for result in results] == ["0.png", "1.png", "2.png", "3.png"]
    assert [result["ood_score"] for result in results] == levels
    assert [result["energies"] for result in results] == [[n, 2 * n, 3 * n, 4 * n] for n in levels]
    assert [result["p_value"] for result in results] == FakeEngine.scorer.p_value(np.array(levels)).tolist()
    assert [result["is_ood"] for result in results] == [True, False, True, False]
    expected = FakeEngine.explainer.energy_quantiles(np.outer(levels, np.arange(1, 5)))
    np.testing.assert_allclose([result["energy_quantiles"] for result in results], expected)
    assert not any(result["resized"] for result in results)


def test_the_verdict_includes_a_p_value_equal_to_alpha(client: TestClient) -> None:
    (result,) = score(client, png(97), alpha=0.03)["results"]
    assert (result["p_value"], result["is_ood"]) == (0.03, True)
    assert score(client, png(97), alpha=0.029)["results"][0]["is_ood"] is False


def test_an_image_of_another_size_is_resized_and_says_so(client: TestClient) -> None:
    results = score(client, png(40), png(40, 16, 12), png(40, 6, 8))["results"]
    assert [result["resized"] for result in results] == [False, True, True]
    assert [result["ood_score"] for result in results] == [40, 40, 40]


def test_images_are_counted_by_verdict_and_p_value(client: TestClient) -> None:
    score(client, png(0), png(1), png(255), b"not an image")
    assert metric(client, "ddaebm_images_scored_total", model="fake", verdict="in") == 2
    assert metric(client, "ddaebm_images_scored_total", model="fake", verdict="ood") == 1
    assert metric(client, "ddaebm_ood_p_value_count", model="fake") == 3


def test_a_stream_unlike_the_calibration_set_is_drift(client: TestClient) -> None:
    assert metric(client, "ddaebm_drift_log_martingale", model="fake") == 0
    for start in range(0, 90, 30):
        score(client, *(png(37 * value % 99) for value in range(start, start + 30)))
    assert metric(client, "ddaebm_drift_log_martingale", model="fake") < 0
    assert metric(client, "ddaebm_drift_log_martingale_highest", model="fake") < math.log(100)
    score(client, *(png(100 + value) for value in range(20)))
    highest = metric(client, "ddaebm_drift_log_martingale_highest", model="fake")
    assert highest == metric(client, "ddaebm_drift_log_martingale", model="fake") > math.log(100)
    for start in range(0, 300, 30):  # what follows does not end the alarm
        score(client, *(png(37 * value % 99) for value in range(start, start + 30)))
    assert metric(client, "ddaebm_drift_log_martingale", model="fake") < highest
    assert metric(client, "ddaebm_drift_log_martingale_highest", model="fake") == highest


def test_samples_are_no_part_of_the_stream(client: TestClient) -> None:
    client.post("/v1/samples", json={"n": 5, "include": ["scores"]})
    assert metric(client, "ddaebm_drift_log_martingale", model="fake") == 0


@pytest.mark.parametrize("bad", UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_image_among_good_ones_has_an_error_in_its_place(client: TestClient, bad: bytes) -> None:
    first, error, last = score(client, png(1), bad, png(2))["results"]
    assert (first["ood_score"], last["ood_score"]) == (1, 2)
    assert (error["index"], error["name"]) == (1, "1.png")
    assert error.keys() == {"index", "name", "error"}
    assert error["error"].keys() == {"type", "title", "status", "detail"}
    assert error["error"]["status"] == 422


@pytest.mark.parametrize("bad", UNREADABLE.values(), ids=UNREADABLE)
def test_when_no_image_is_readable_the_error_is_the_answer(client: TestClient, engine: FakeEngine, bad: bytes) -> None:
    check_problem(client.post(URL, files=files(bad, bad)), 422, "unreadable-image")
    assert not engine.calls


def test_a_header_that_claims_too_many_pixels_is_refused_undecoded(client: TestClient) -> None:
    problem = check_problem(client.post(URL, files=files(BOMB)), 413, "too-many-pixels")
    assert "50000x50000 pixels" in problem["detail"]
    assert "16384" in problem["detail"]
    results = score(client, BOMB, png(5))["results"]
    assert (results[0]["error"]["status"], results[1]["ood_score"]) == (413, 5)


def test_the_pixels_of_one_request_have_a_budget(make_client: MakeClient) -> None:
    client = make_client(max_request_pixels=100)
    results = score(client, png(1), png(2), png(3))["results"]  # 48 pixels each
    assert [result.get("ood_score") for result in results] == [1, 2, None]
    assert results[2]["error"]["status"] == 413
    check_problem(client.post(URL, files=files(png(1, 11, 10))), 413, "too-many-pixels")


def test_too_many_files_are_413_and_the_limit_itself_is_not(make_client: MakeClient, engine: FakeEngine) -> None:
    client = make_client(max_files=3)
    assert len(score(client, *[png()] * 3)["results"]) == 3
    engine.calls.clear()
    check_problem(client.post(URL, files=files(*[png()] * 4)), 413, "too-many-images")
    assert not engine.calls


def test_fdr_selects_among_the_images_of_the_request(client: TestClient) -> None:
    """p-values 0.01, 0.02, 0.04, 0.6 and none: three of four are at most 0.06·3/4, two at most 0.05·2/4."""
    images = (png(255), png(98), b"no image", png(96), png(40))
    body = score(client, *images, fdr=0.06)
    assert (body["fdr"], body["alpha"]) == (0.06, 0.05)
    assert [result.get("selected") for result in body["results"]] == [True, True, None, True, False]
    assert [result.get("is_ood") for result in body["results"]] == [True, True, None, True, False]
    results = score(client, *images, fdr=0.05, heatmap=True)["results"]
    assert [result.get("selected") for result in results] == [True, True, None, False, False]
    assert [result.get("is_ood") for result in results] == [True, True, None, True, False], "by alpha"
    body = score(client, png(40))
    assert "fdr" not in body
    assert "selected" not in body["results"][0]


@pytest.mark.parametrize("fdr", ["0", "1", "nan", "x", "0.009"])
def test_an_fdr_that_cannot_work_is_422(client: TestClient, engine: FakeEngine, fdr: str) -> None:
    problem = check_problem(client.post(URL, files=files(png()), params={"fdr": fdr}), 422)
    assert "fdr" in problem["detail"]
    assert not engine.calls


@pytest.mark.parametrize("alpha", ["0", "1", "-1", "2", "nan", "inf", "-inf", "x", "", "0.009", "1e-300"])
def test_an_alpha_that_cannot_work_is_422(client: TestClient, engine: FakeEngine, alpha: str) -> None:
    problem = check_problem(client.post(URL, files=files(png()), params={"alpha": alpha}), 422)
    assert "alpha" in problem["detail"]
    assert not engine.calls


def test_an_alpha_below_the_smallest_p_is_told_that_p(client: TestClient) -> None:
    response = client.post(URL, files=files(png()), params={"alpha": 0.0099})
    assert "0.01" in check_problem(response, 422, "alpha-too-small")["detail"]


def test_the_default_alpha_is_one_that_can_fire(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert score(client, png())["alpha"] == 0.05
    scorer = dataclasses.replace(FakeEngine.scorer, calibration_scores=np.arange(9.0))
    monkeypatch.setattr(FakeEngine, "scorer", scorer)
    body = score(client, png(255))
    assert (body["alpha"], body["results"][0]["is_ood"]) == (0.1, True)
    check_problem(client.post(URL, files=files(png()), params={"alpha": 0.05}), 422, "alpha-too-small")


@pytest.mark.parametrize("alpha", [0.01, 0.5, 0.999])
def test_an_alpha_that_can_fire_is_taken(client: TestClient, alpha: float) -> None:
    assert score(client, png(255), alpha=alpha)["alpha"] == alpha


def test_a_mistyped_query_is_refused_and_named(client: TestClient, engine: FakeEngine) -> None:
    response = client.post(URL, files=files(png()), params={"aplha": 0.01})
    assert check_problem(response, 422)["detail"].startswith("aplha: ")
    assert not engine.calls


def test_an_unknown_model_is_404(client: TestClient) -> None:
    check_problem(client.post(URL, files=files(png()), params={"model": "nobody"}), 404, "unknown-model")
    assert score(client, png(), model="fake")["model"] == "fake"


def part(disposition: str, data: bytes = b"x") -> bytes:
    return b"--B\r\nContent-Disposition: form-data" + disposition.encode() + b"\r\n\r\n" + data + b"\r\n"


BAD_FORMS: dict[str, tuple[str, bytes, int]] = {
    "json without images": ("application/json", b'{"images": []}', 422),
    "json of something else": ("application/json", b'{"pictures": ["x"]}', 422),
    "json with more": ("application/json", b'{"images": ["x"], "alpha": 0.1}', 422),
    "json of numbers": ("application/json", b'{"images": [1]}', 422),
    "no json": ("application/json", b"images", 400),
    "nested json": ("application/json", b"[" * 20_000 + b"]" * 20_000, 400),
    "json of no base64": ("application/json", b'{"images": ["!", "data:image/png;base64,"]}', 422),
    "json of no image": ("application/json", b'{"images": ["aGVsbG8="]}', 422),
    "json of many numbers": ("application/json", b'{"images": [' + b"1," * 2**20 + b"1]}", 413),
    "json of many fields": ("application/json", b"{" + b'"a": 1, ' * 2**20 + b'"b": 1}', 413),
    "raw JPEG of many scans": ("image/jpeg", many_scans(), 422),
    "raw words": ("image/png", b"words", 422),
    "raw nothing": ("image/png", b"", 422),
    "raw svg": ("image/svg+xml", b"<svg/>", 422),
    "raw bomb": ("image/png", BOMB, 413),
    "npy of floats": ("application/x-npy", npy(np.zeros((1, 8, 6))), 422),
    "npy of objects": ("application/x-npy", npy(np.array([{}], dtype=object), pickle=True), 422),
    "npy of one axis": ("application/x-npy", npy(np.zeros(6, np.uint8)), 422),
    "npy of four channels": ("application/x-npy", npy(np.zeros((1, 8, 6, 4), np.uint8)), 422),
    "npy of nothing": ("application/x-npy", npy(np.zeros((0, 8, 6), np.uint8)), 422),
    "npy cut short": ("application/x-npy", npy(np.zeros((2, 8, 6), np.uint8))[:-1], 422),
    "npy too long": ("application/x-npy", npy(np.zeros((2, 8, 6), np.uint8)) + b"x", 422),
    "npy of words": ("application/x-npy", b"words", 422),
    "npy empty": ("application/x-npy", b"", 422),
    "npy of many": ("application/x-npy", npy(np.zeros((257, 2, 2), np.uint8)), 413),
    "npy that claims much": ("application/x-npy", NPY_BOMB, 413),
    "npy of a huge image": ("application/x-npy", npy(np.zeros((1, 2, 16_385), np.uint8)), 413),
    "octets": ("application/octet-stream", png(), 415),
    "urlencoded": ("application/x-www-form-urlencoded", b"images=x", 415),
    "no content type": ("", b"", 415),
    "no boundary": ("multipart/form-data", b"--B--\r\n", 400),
    "empty boundary": ("multipart/form-data; boundary=", b"--B--\r\n", 400),
    "another boundary": ("multipart/form-data; boundary=C", part('; name="images"; filename="a"') + b"--B--\r\n", 400),
    "no parts": ("multipart/form-data; boundary=B", b"--B--\r\n", 422),
    "empty body": ("multipart/form-data; boundary=B", b"", 422),
    "no name": ("multipart/form-data; boundary=B", part("") + b"--B--\r\n", 400),
    "wrong name": ("multipart/form-data; boundary=B", part('; name="image"; filename="a"', png()) + b"--B--\r\n", 422),
    "text field": ("multipart/form-data; boundary=B", part('; name="images"', png()) + b"--B--\r\n", 422),
    "17 text fields": ("multipart/form-data; boundary=B", part('; name="images"') * 17 + b"--B--\r\n", 422),
    "broken header": ("multipart/form-data; boundary=B", b"--B\r\n\x00\x01: \r\n\r\n--B--", 400),
    "long header": ("multipart/form-data; boundary=B", part(f'; name="images"; filename="{"x" * 9_999}"'), 400),
    "no header": ("multipart/form-data; boundary=B", b"--B\r\n\r\nx\r\n--B--\r\n", 400),
    "huge text field": ("multipart/form-data; boundary=B", part('; name="x"', b"x" * 2**21) + b"--B--\r\n", 422),
}


@pytest.mark.parametrize(("content_type", "body", "status"), BAD_FORMS.values(), ids=BAD_FORMS)
def test_a_bad_form_gets_its_problem_and_nothing_is_computed(
    client: TestClient, engine: FakeEngine, content_type: str, body: bytes, status: int
) -> None:
    check_problem(client.post(URL, content=body, headers={"content-type": content_type}), status)
    assert not engine.calls


@pytest.mark.parametrize("charset", ["utf-16", "latin-1", "nonsense", "hex", "undefined", "punycode", "unicode_escape"])
def test_no_charset_of_a_form_is_a_fault_of_the_server(client: TestClient, charset: str) -> None:
    body = part('; name="images"; filename="\\ud800.png"', png()) + b"--B--\r\n"
    headers = {"content-type": f"multipart/form-data; boundary=B; charset={charset}"}
    assert client.post(URL, content=body, headers=headers).status_code < 500


@pytest.mark.parametrize(
    "name", ["кот 🐈.png", "../../etc/passwd", "a\\b.png", "<script>", "%00.png", "x" * 300, "quote%22.png", "."]
)
def test_a_file_name_comes_back_as_it_was_sent(client: TestClient, name: str) -> None:
    body = part(f'; name="images"; filename="{name}"', png(4)) + b"--B--\r\n"
    response = client.post(URL, content=body, headers={"content-type": "multipart/form-data; boundary=B"})
    assert response.status_code == 200
    (result,) = response.json()["results"]
    assert (result["name"].replace("\\\\", "\\"), result["ood_score"]) == (name, 4)


def test_a_file_without_a_name_is_scored_all_the_same(client: TestClient) -> None:
    body = part('; name="images"; filename=""', png(4)) + b"--B--\r\n"
    response = client.post(URL, content=body, headers={"content-type": "multipart/form-data; boundary=B"})
    assert [result["name"] for result in response.json()["results"]] == [""]
