"""Every limit of the service that its documents name: what is just within it is served, one more is refused."""

import gzip
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from ddaebm.model.noise import MAX_SEED
from ddaebm.service.settings import Settings
from tests.service.conftest import MakeClient, check_problem, files, png
from tests.service.routes.test_score_bodies import as_json, npy

SAMPLES, SCORES = "/v1/samples", "/v1/scores"
SAMPLER, SCORER = "/v2/models/fake-sampler/infer", "/v2/models/fake-scorer/infer"
ONE_SEED = {"name": "seeds", "datatype": "INT64", "shape": [1, 1], "data": [1]}


class Limit(NamedTuple):
    send: Callable[[TestClient, int], Any]  # (client, size) -> the answer
    most: int
    refusal: str  # status and slug of one more
    settings: Mapping[str, Any] = {}
    within: int = 200  # status of `most`


def sample(**fixed: Any) -> Callable[..., Any]:
    """Sends a field of /v1/samples; the keyword whose value is None takes the size."""
    return lambda client, size: client.post(
        SAMPLES, json={name: size if value is None else value for name, value in fixed.items()}
    )


def seeds(client: TestClient, count: int) -> Any:
    return client.post(SAMPLES, json={"seeds": list(range(count))})


def inflated(client: TestClient, size: int) -> Any:
    body = gzip.compress(json.dumps({"inputs": [ONE_SEED]}).encode().ljust(size), mtime=0)
    return client.post(SAMPLER, content=body, headers={"content-encoding": "gzip"})


def padded(client: TestClient, size: int) -> Any:
    headers = {"content-type": "application/json"}
    return client.post(SAMPLES, content=b'{"seed": 1}'.ljust(size), headers=headers)


def form(client: TestClient, count: int) -> Any:
    return client.post(SCORES, files=files(*[png()] * count))


def listed(client: TestClient, count: int) -> Any:
    return client.post(SCORES, content=as_json([png()] * count), headers={"content-type": "application/json"})


def array(client: TestClient, count: int) -> Any:
    body = npy(np.zeros((count, 8, 6), np.uint8))
    return client.post(SCORES, content=body, headers={"content-type": "application/x-npy"})


def wide(client: TestClient, width: int) -> Any:
    return client.post(SCORES, content=png(0, 8, width), headers={"content-type": "image/png"})


def wide_files(client: TestClient, width: int) -> Any:
    """Three images of 8 x `width`: the answer of the last one is the answer."""
    answer = client.post(SCORES, files=files(*[png(0, 8, width)] * 3))
    last = answer.json()["results"][-1].get("error")
    if last:
        answer.status_code, last["slug"] = last["status"], last["type"]
    return answer


def wide_array(client: TestClient, width: int) -> Any:
    body = npy(np.zeros((3, 8, width), np.uint8))
    return client.post(SCORES, content=body, headers={"content-type": "application/x-npy"})


def tensor(name: str, datatype: str, row: tuple[int, ...], path: str) -> Callable[..., Any]:
    def send(client: TestClient, count: int) -> Any:
        data = [0] * (count * int(np.prod(row)))
        given = {"name": name, "datatype": datatype, "shape": [count, *row], "data": data}
        return client.post(path, json={"inputs": [given]})

    return send


def tensor_seed(client: TestClient, seed: int) -> Any:
    return client.post(SAMPLER, json={"inputs": [{**ONE_SEED, "data": [seed]}]})


def inputs(client: TestClient, count: int) -> Any:
    return client.post(SAMPLER, json={"inputs": [ONE_SEED], "outputs": [{"name": "images"}] * count})


def timeout(client: TestClient, microseconds: int) -> Any:
    return client.post(SAMPLER, json={"inputs": [ONE_SEED], "parameters": {"timeout": microseconds}})


def tensor_json(client: TestClient, size: int) -> Any:
    """JSON of `size` bytes, most of it spaces between numbers, which are not counted with the rest."""
    head, tail = b'{"inputs": [{"name": "seeds", "datatype": "INT64", "shape": [1, 1], "data": [', b"1]}]}"
    return client.post(SAMPLER, content=head + b" " * (size - len(head) - len(tail)) + tail)


def tensor_text(client: TestClient, size: int) -> Any:
    """JSON of which `size` bytes are left once its numbers are cut out."""
    text = json.dumps({"inputs": [ONE_SEED], "id": ""}, separators=(",", ":"))
    return client.post(SAMPLER, content=text.replace('""', f'"{"x" * (size - len(text) - 1)}"'))  # [1] -> null


def part_headers(client: TestClient, size: int) -> Any:
    start = b'Content-Disposition: form-data; name="images"; filename="a"\r\nX: '
    head = start + b"x" * (size - len(start))
    body = b"--B\r\n" + head + b"\r\n\r\n" + png() + b"\r\n--B--\r\n"
    return client.post(SCORES, content=body, headers={"content-type": "multipart/form-data; boundary=B"})


def accept(client: TestClient, size: int) -> Any:
    return client.post(SAMPLES, json={"seed": 1}, headers={"accept": "application/json;".ljust(size, "x")})


def rate(name: str) -> Callable[..., Any]:
    """Sends 1/size as `name`: the smallest p-value of the fake engine is 0.01."""
    return lambda client, size: client.post(f"{SCORES}?{name}={1 / size!r}", files=files(png()))


QUEUE = {"max_queue_images": 5}
LIMITS = {
    "n": Limit(sample(n=None), 1024, "422 invalid-request"),
    "best_of": Limit(sample(best_of=None), 64, "422 invalid-request"),
    "n·best_of": Limit(sample(n=None, best_of=32), 64, "422 invalid-request"),
    "seed": Limit(sample(seed=None), MAX_SEED, "422 invalid-request"),
    "seed in a list": Limit(lambda c, size: c.post(SAMPLES, json={"seeds": [size]}), MAX_SEED, "422 invalid-request"),
    "seed in a path": Limit(lambda c, size: c.get(f"{SAMPLES}/{size}.png"), MAX_SEED, "422 invalid-request"),
    "seeds": Limit(seeds, 1024, "422 invalid-request"),
    "body": Limit(padded, 100, "413 body-too-large", {"max_body_bytes": 100}),
    "body of a small request": Limit(padded, 2**16, "413 body-too-large"),
    "inflated body": Limit(inflated, 200, "413 body-too-large", {"max_body_bytes": 200}),
    "files of a form": Limit(form, 3, "413 too-many-images", {"max_files": 3}),
    "images of JSON": Limit(listed, 3, "413 too-many-images", {"max_files": 3}),
    "images of an array": Limit(array, 3, "413 too-many-images", {"max_files": 3}),
    "images by default": Limit(array, 256, "413 too-many-images"),
    "pixels of an image": Limit(wide, 9, "413 too-many-pixels", {"max_image_pixels": 72}),
    "pixels of files": Limit(wide_files, 9, "413 too-many-pixels", {"max_request_pixels": 216}),
    "pixels of an array": Limit(wide_array, 9, "413 too-many-pixels", {"max_request_pixels": 216}),
    "side of an image": Limit(wide, 16_384, "413 too-many-pixels"),
    "images that a queue can hold": Limit(form, 5, "413 too-many-images", QUEUE),
    "samples that a queue can hold": Limit(sample(n=None), 5, "413 too-many-images", QUEUE),
    "headers of a part": Limit(part_headers, 8190 - 4, "400 malformed-form"),
    "Accept": Limit(accept, 4096, "400 bad-accept"),
    "1/alpha": Limit(rate("alpha"), 100, "422 alpha-too-small"),
    "1/fdr": Limit(rate("fdr"), 100, "422 fdr-too-small"),
    "v2 rows of seeds": Limit(tensor("seeds", "INT64", (1,), SAMPLER), 1024, "413 too-many-images"),
    "v2 rows of images": Limit(
        tensor("images", "UINT8", (8, 6, 1), SCORER), 3, "413 too-many-images", {"max_files": 3}
    ),
    "v2 seed": Limit(tensor_seed, MAX_SEED, "422 invalid-request"),
    "v2 outputs": Limit(inputs, 16, "422 invalid-request"),
    "v2 timeout": Limit(timeout, 10**15, "422 invalid-request"),
    "v2 JSON": Limit(tensor_json, 4 * 2**20, "413 body-too-large"),
    "v2 JSON besides numbers": Limit(tensor_text, 2**16, "413 body-too-large"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_the_limit_itself_is_served_and_one_more_is_not(make_client: MakeClient, name: str) -> None:
    limit = LIMITS[name]
    client = make_client(**limit.settings)
    answer = limit.send(client, limit.most)
    assert answer.status_code == limit.within, answer.text[:500]
    refused, (status, slug) = limit.send(client, limit.most + 1), limit.refusal.split()
    assert refused.status_code == int(status), refused.text[:500]
    assert f"urn:ddaebm:error:{slug}" in refused.text


def test_a_seed_may_be_nought_and_no_less(client: TestClient) -> None:
    for send in (LIMITS["seed"].send, LIMITS["seed in a list"].send, tensor_seed):
        assert send(client, 0).status_code == 200
        check_problem(send(client, -1), 422)


@pytest.mark.parametrize("name", ["n", "best_of"])
def test_a_number_of_images_begins_at_one(client: TestClient, name: str) -> None:
    check_problem(client.post(SAMPLES, json={name: 0}), 422, "invalid-request")


@pytest.mark.parametrize(("length", "kept"), [(128, True), (129, False)])
def test_a_request_id_of_128_characters_is_kept(client: TestClient, length: int, kept: bool) -> None:
    answer = client.get("/livez", headers={"x-request-id": "x" * length})
    assert (answer.headers["x-request-id"] == "x" * length) is kept


@pytest.mark.parametrize(("wrong", "told"), [(10, 10), (11, 10)])
def test_an_answer_tells_of_ten_wrong_fields(client: TestClient, wrong: int, told: int) -> None:
    answer = client.post(SAMPLES, json={f"x{i}": 1 for i in range(wrong)})
    assert sum(f"x{i}:" in check_problem(answer, 422)["detail"] for i in range(wrong)) == told


def test_settings_take_their_limits_and_nothing_beyond() -> None:
    least = {name: 1 for name, field in Settings.model_fields.items() if field.annotation is int}
    least |= {"port": 0, "workers": 0, "threads": 0, "max_header_bytes": 256}
    for name, value in least.items():
        assert getattr(Settings(**{"max_body_bytes": 1, name: value}), name) == value
        with pytest.raises(ValidationError, match=name):
            Settings(**{"max_body_bytes": 1, name: value - 1})
    assert Settings(port=65_535).port == 65_535
    with pytest.raises(ValidationError, match="port"):
        Settings(port=65_536)


@pytest.mark.parametrize("name", [name for name, field in Settings.model_fields.items() if field.annotation is float])
def test_times_are_positive(name: str) -> None:
    assert getattr(Settings(**{name: 1e-3}), name) == 1e-3
    with pytest.raises(ValidationError, match=name):
        Settings(**{name: 0.0})
