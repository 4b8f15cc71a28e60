"""The client of Triton, over a socket, against the running service."""

from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from ddaebm.model.noise import image_seeds
from tests.e2e.conftest import Running


@pytest.fixture
def client(service: Running) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(service.client.base_url.netloc.decode()) as made:
        yield made


def test_health_metadata_config_and_index(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("debug-scorer")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["name"] == "ddaebm"
    assert client.get_model_metadata("debug-sampler")["outputs"][0]["shape"] == [-1, 16, 16, 1]
    assert client.get_model_config("debug-scorer")["input"][0]["dims"] == [16, 16, 1]
    assert [entry["name"] for entry in client.get_model_repository_index()] == ["debug-sampler", "debug-scorer"]


@pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_sampled_and_scored_as_over_v1(
    client: triton.InferenceServerClient, service: Running, binary: bool, packed: str | None
) -> None:
    first = int(image_seeds(3, 1)[0])
    seeds = triton.InferInput("seeds", [2, 1], "INT64")
    seeds.set_data_from_numpy(np.array([[first], [9]], dtype=np.int64), binary_data=binary)
    outputs = [triton.InferRequestedOutput("images", binary_data=binary)]
    made = client.infer("debug-sampler", [seeds], outputs=outputs, request_compression_algorithm=packed).as_numpy(
        "images"
    )
    assert (made.shape, made.dtype) == ((2, 16, 16, 1), np.uint8)

    images = triton.InferInput("images", list(made.shape), "UINT8")
    images.set_data_from_numpy(made, binary_data=binary)
    scores = client.infer("debug-scorer", [images], request_id="7", request_compression_algorithm=packed)
    assert scores.get_response()["id"] == "7"
    body = {"seeds": [first, 9], "include": ["scores"]}
    for row, expected in enumerate(service.client.post("/v1/samples", json=body).json()["images"]):
        np.testing.assert_allclose(scores.as_numpy("energies")[row], expected["energies"], rtol=1e-6)
        assert scores.as_numpy("p_value")[row, 0] == pytest.approx(expected["p_value"])
        assert scores.as_numpy("ood_score")[row, 0] == pytest.approx(expected["ood_score"], rel=1e-6)


def test_an_error_reaches_the_caller_with_its_reason(client: triton.InferenceServerClient) -> None:
    images = triton.InferInput("images", [1, 5, 5, 1], "UINT8")
    images.set_data_from_numpy(np.zeros((1, 5, 5, 1), np.uint8))
    with pytest.raises(InferenceServerException, match=r"images has the shape \[-1, 16, 16, 1\]"):
        client.infer("debug-scorer", [images])


def test_statistics(client: triton.InferenceServerClient) -> None:
    seeds = triton.InferInput("seeds", [3, 1], "INT64")
    seeds.set_data_from_numpy(np.arange(3).reshape(3, 1))
    before = client.get_inference_statistics("debug-sampler")["model_stats"][0]["inference_count"]
    client.infer("debug-sampler", [seeds])
    assert client.get_inference_statistics("debug-sampler")["model_stats"][0]["inference_count"] == before + 3
