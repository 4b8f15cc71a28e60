"""/v2: tensors as JSON and as bytes, and everything that can be wrong with them."""

import gzip
import json
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from ddaebm.model.noise import MAX_SEED
from ddaebm.service.http.openinference import HEADER_LENGTH
from tests.service.conftest import FakeEngine, MakeClient, check_problem, metric, pixels_of

SAMPLER, SCORER = "/v2/models/fake-sampler", "/v2/models/fake-scorer"
SEEDS: dict[str, Any] = {"name": "seeds", "datatype": "INT64", "shape": [2, 1], "data": [3, 5]}
IMAGES = np.stack([pixels_of(seed) for seed in (3, 5)])


def infer(client: TestClient, path: str, body: Any, tail: bytes = b"", **headers: str) -> Any:
    head = json.dumps(body).encode()
    if tail:
        headers[HEADER_LENGTH] = str(len(head))
    return client.post(f"{path}/infer", content=head + tail, headers=headers)


def tensors(response: Any) -> dict[str, NDArray[Any]]:
    """By name, from JSON or bytes."""
    assert response.status_code == 200, response.text
    length = int(response.headers.get(HEADER_LENGTH, len(response.content)))
    head, tail = json.loads(response.content[:length]), response.content[length:]
    dtypes = {"UINT8": np.uint8, "INT64": np.int64, "FP32": np.float32, "FP64": np.float64}
    found = {}
    for output in head["outputs"]:
        dtype = dtypes[output["datatype"]]
        if "parameters" in output:
            size = output["parameters"]["binary_data_size"]
            array, tail = np.frombuffer(tail[:size], dtype), tail[size:]
        else:
            array = np.array(output["data"], dtype)
        found[output["name"]] = array.reshape(output["shape"])
    assert tail == b""
    return found


def binary(array: NDArray[Any], datatype: str, name: str) -> tuple[dict[str, Any], bytes]:
    data = array.tobytes()
    return {"name": name, "datatype": datatype, "shape": list(array.shape),
            "parameters": {"binary_data_size": len(data)}}, data  # fmt: skip


def test_seeds_give_the_images_of_those_seeds(client: TestClient) -> None:
    response = infer(client, SAMPLER, {"id": "mine", "inputs": [SEEDS]})
    np.testing.assert_array_equal(tensors(response)["images"], IMAGES)
    body = response.json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("fake-sampler", "1", "mine")
    assert metric(client, "ddaebm_images_sampled_total", model="fake") == 2


@pytest.mark.parametrize("form", [{**SEEDS, "shape": [2]}, {**SEEDS, "data": [[3], [5]]}])
def test_seeds_may_be_flat_or_nested(client: TestClient, form: dict[str, Any]) -> None:
    np.testing.assert_array_equal(tensors(infer(client, SAMPLER, {"inputs": [form]}))["images"], IMAGES)


def test_images_as_json_and_as_bytes_have_the_scores_of_v1(client: TestClient, engine: FakeEngine) -> None:
    expected = engine.score(IMAGES)
    form, tail = binary(IMAGES, "UINT8", "images")
    plain = {"name": "images", "datatype": "UINT8", "shape": list(IMAGES.shape), "data": IMAGES.ravel().tolist()}
    for response in (infer(client, SCORER, {"inputs": [plain]}), infer(client, SCORER, {"inputs": [form]}, tail)):
        found = tensors(response)
        np.testing.assert_array_equal(found["energies"], expected.energies)
        np.testing.assert_array_equal(found["ood_score"][:, 0], expected.ood_score)
        np.testing.assert_array_equal(found["p_value"][:, 0], expected.p_value)
        np.testing.assert_array_equal(found["box"], expected.box)
    assert metric(client, "ddaebm_images_scored_total", model="fake") == 4


def test_outputs_are_those_asked_for_in_the_form_asked_for(client: TestClient) -> None:
    plain = {"name": "images", "datatype": "UINT8", "shape": list(IMAGES.shape), "data": IMAGES.ravel().tolist()}
    outputs = [{"name": "p_value"}, {"name": "energies", "parameters": {"binary_data": True}}]
    response = infer(client, SCORER, {"inputs": [plain], "outputs": outputs})
    assert list(tensors(response)) == ["p_value", "energies"]
    length = int(response.headers[HEADER_LENGTH])
    first, second = json.loads(response.content[:length])["outputs"]
    assert "data" in first
    assert second["parameters"] == {"binary_data_size": 2 * 4 * 4}
    whole = infer(client, SCORER, {"inputs": [plain], "parameters": {"binary_data_output": True}})
    assert whole.headers["content-type"] == "application/octet-stream"
    assert list(tensors(whole)) == ["energies", "ood_score", "p_value", "box"]


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_packed_body_is_unpacked_and_lengths_are_of_what_was_packed(
    client: TestClient, encoding: str, pack: Any
) -> None:
    form, tail = binary(IMAGES, "UINT8", "images")
    head = json.dumps({"inputs": [form]}).encode()
    headers = {"content-encoding": encoding, HEADER_LENGTH: str(len(head))}
    found = client.post(f"{SCORER}/infer", content=pack(head + tail), headers=headers)
    assert tensors(found)["energies"].shape == (2, 4)


def test_a_small_body_that_unpacks_to_a_large_one_is_refused(make_client: MakeClient) -> None:
    bomb = gzip.compress(b" " * 1_000_000, mtime=0)
    client = make_client(max_body_bytes=10_000)
    assert len(bomb) < 10_000
    answer = client.post(f"{SAMPLER}/infer", content=bomb, headers={"content-encoding": "gzip"})
    check_problem(answer, 413, "body-too-large")


FORM, TAIL = binary(IMAGES, "UINT8", "images")
SHAPE = list(IMAGES.shape)


@pytest.mark.parametrize(
    ("path", "body", "tail", "status", "word"),
    [
        (SAMPLER, {"inputs": []}, b"", 422, "one input, seeds"),
        (SAMPLER, {"inputs": [SEEDS, SEEDS]}, b"", 422, "one input"),
        (SAMPLER, {"inputs": [{**SEEDS, "name": "images"}]}, b"", 422, "one input, seeds"),
        (SAMPLER, {"inputs": [{**SEEDS, "datatype": "INT32"}]}, b"", 422, "seeds is INT64"),
        (SAMPLER, {"inputs": [{**SEEDS, "shape": [1, 2]}]}, b"", 422, "shape"),
        (SAMPLER, {"inputs": [{**SEEDS, "shape": [0, 1], "data": []}]}, b"", 422, "no rows"),
        (SAMPLER, {"inputs": [{**SEEDS, "shape": [-1, 1]}]}, b"", 422, "no rows"),
        (SAMPLER, {"inputs": [{**SEEDS, "shape": []}]}, b"", 422, "shape"),
        (SAMPLER, {"inputs": [{**SEEDS, "shape": [1025, 1]}]}, b"", 413, "1024"),
        (SAMPLER, {"inputs": [{**SEEDS, "shape": [2**62, 1]}]}, b"", 413, "1024"),
        (SAMPLER, {"inputs": [{**SEEDS, "data": [1]}]}, b"", 422, "2 whole numbers"),
        (SAMPLER, {"inputs": [{**SEEDS, "data": [1, 2.5]}]}, b"", 422, "2 whole numbers"),
        (SAMPLER, {"inputs": [{**SEEDS, "data": [True, False]}]}, b"", 422, "2 whole numbers"),
        (SAMPLER, {"inputs": [{**SEEDS, "data": ["1", "2"]}]}, b"", 422, "2 whole numbers"),
        (SAMPLER, {"inputs": [{**SEEDS, "data": [None, 1]}]}, b"", 422, "2 whole numbers"),
        (SAMPLER, {"inputs": [{**SEEDS, "data": [[1], 2]}]}, b"", 422, "2 whole numbers"),
        (SAMPLER, {"inputs": [{**SEEDS, "data": [2**70, 1]}]}, b"", 422, "must lie in"),
        (SAMPLER, {"inputs": [{**SEEDS, "data": [2**63, 1]}]}, b"", 422, "must lie in"),
        (SAMPLER, {"inputs": [{**SEEDS, "data": [-1, 1]}]}, b"", 422, f"0..{MAX_SEED}"),
        (SAMPLER, {"inputs": [{**SEEDS, "data": [MAX_SEED + 1, 1]}]}, b"", 422, f"0..{MAX_SEED}"),
        (SAMPLER, {"inputs": [{k: v for k, v in SEEDS.items() if k != "data"}]}, b"", 422, "neither"),
        (SAMPLER, {"inputs": [SEEDS], "outputs": [{"name": "energies"}]}, b"", 422, "there are images"),
        (SAMPLER, {"inputs": [SEEDS], "parameters": {"timeout": "soon"}}, b"", 422, "microseconds"),
        (SAMPLER, {"inputs": [SEEDS], "parameters": {"timeout": -1}}, b"", 422, "microseconds"),
        (SAMPLER, {"inputs": "seeds"}, b"", 422, "inputs"),
        (SAMPLER, {}, b"", 422, "inputs"),
        (SAMPLER, [1], b"", 422, "body"),
        (SAMPLER, {"inputs": [SEEDS]}, b"more", 422, "no input asks for"),
        (SCORER, {"inputs": [FORM]}, TAIL[1:], 422, "bytes"),
        (SCORER, {"inputs": [FORM]}, TAIL + b"x", 422, "bytes"),
        (SCORER, {"inputs": [{**FORM, "parameters": {"binary_data_size": "96"}}]}, TAIL, 422, "bytes"),
        (SCORER, {"inputs": [{**FORM, "data": [1]}]}, TAIL, 422, "both"),
        (SCORER, {"inputs": [{**FORM, "shape": [2, 6, 8, 1]}]}, TAIL, 422, "shape"),
        (SCORER, {"inputs": [{**FORM, "shape": [257, *SHAPE[1:]]}]}, TAIL, 413, "256"),
        (SCORER, {"inputs": [{**FORM, "parameters": {}, "data": [256] * IMAGES.size}]}, b"", 422, "fit UINT8"),
        (SCORER, {"inputs": [{**FORM, "parameters": {}, "data": [0.5] * IMAGES.size}]}, b"", 422, "whole numbers"),
    ],
)  # fmt: skip
def test_what_is_not_the_model_s_tensors_is_refused_with_a_reason(
    client: TestClient, engine: FakeEngine, path: str, body: Any, tail: bytes, status: int, word: str
) -> None:
    assert word in check_problem(infer(client, path, body, tail), status)["error"]
    assert engine.calls == []


@pytest.mark.parametrize("length", ["-1", "x", "9" * 30, "1e3", "²", ""])
def test_a_json_length_outside_the_body_is_refused(client: TestClient, length: str) -> None:
    headers = {HEADER_LENGTH: length.encode("latin-1")}
    answer = client.post(f"{SAMPLER}/infer", content=b"{}", headers=headers)  # type: ignore[arg-type]
    check_problem(answer, 400, "malformed-body")


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [(b"{", {}, 400), (b"", {}, 400), (b"\xff", {}, 400), (b"[" * 1000, {}, 400),
     (b"{}", {"content-encoding": "gzip"}, 400), (b"{}", {"content-encoding": "deflate"}, 400),
     (gzip.compress(b"{}", mtime=0)[:-4], {"content-encoding": "gzip"}, 400), (b"{}", {"content-encoding": "br"}, 415),
     (b" " * (4 * 2**20 + 1), {}, 413)],
)  # fmt: skip
def test_what_is_no_request_is_refused(
    client: TestClient, content: bytes, headers: dict[str, str], status: int
) -> None:
    check_problem(client.post(f"{SAMPLER}/infer", content=content, headers=headers), status)


def test_a_timeout_is_the_deadline(client: TestClient, engine: FakeEngine) -> None:
    with engine.blocked():
        answer = infer(client, SAMPLER, {"inputs": [SEEDS], "parameters": {"timeout": 20_000}})
    check_problem(answer, 504, "deadline")


def test_metadata_and_config_say_what_infer_takes(client: TestClient) -> None:
    assert client.get("/v2").json()["extensions"][0] == "binary_tensor_data"
    found = client.get(SCORER).json()
    assert found["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 8, 6, 1]}]
    assert [output["name"] for output in found["outputs"]] == ["energies", "ood_score", "p_value", "box"]
    assert client.get(f"{SCORER}/versions/1").json() == found
    config = client.get(f"{SAMPLER}/config").json()
    assert config["input"] == [{"name": "seeds", "data_type": "TYPE_INT64", "dims": [1]}]
    assert config["max_batch_size"] == 1024
    index = client.post("/v2/repository/index").json()
    assert [entry["name"] for entry in index] == ["fake-sampler", "fake-scorer"]


@pytest.mark.parametrize("path", ["/v2/models/fake", "/v2/models/x-sampler/ready", f"{SAMPLER}/versions/2/ready"])
def test_an_unknown_model_or_version_is_404(client: TestClient, path: str) -> None:
    check_problem(client.get(path), 404)


def test_health_follows_the_service(client: TestClient) -> None:
    paths = ("/v2/health/live", "/v2/health/ready", f"{SAMPLER}/ready")
    assert [client.get(path).status_code for path in paths] == [200, 200, 200]
    client.app.state.service.runner.draining = True  # type: ignore[attr-defined]
    assert [client.get(path).status_code for path in paths] == [200, 503, 503]


def test_statistics_count_requests_failures_and_images(client: TestClient, engine: FakeEngine) -> None:
    infer(client, SAMPLER, {"inputs": [SEEDS]})
    infer(client, SAMPLER, {"inputs": []})
    (found,) = client.get(f"{SAMPLER}/stats").json()["model_stats"]
    assert (found["inference_count"], found["execution_count"], found["last_inference"] > 0) == (2, 1, True)
    assert found["inference_stats"]["success"]["count"] == found["inference_stats"]["fail"]["count"] == 1
    assert found["inference_stats"]["success"]["ns"] >= found["inference_stats"]["compute_infer"]["ns"] > 0
    assert [entry["name"] for entry in client.get("/v2/models/stats").json()["model_stats"]] == [
        "fake-sampler", "fake-scorer"
    ]  # fmt: skip
