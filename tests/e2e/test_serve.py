"""`ddaebm serve` on a real bundle: same seed, same bytes, under load; and every way to end."""

import base64
import http.client
import io
import json
import shutil
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddaebm.service.settings import Settings
from tests.e2e.conftest import PATIENCE, Cli, Running, check_failure, running, wait_until


def sample(service: Running, n: int, seed: int) -> bytes:
    response = service.client.post("/v1/samples", json={"n": n, "seed": seed})
    assert response.status_code == 200, response.text
    return response.content


def noise_png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(256, size=(16, 16), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_what_is_loaded_is_the_bundle(service: Running, debug_bundle: Path) -> None:
    (model,) = service.client.get("/v1/models").json()["models"]
    manifest = json.loads((debug_bundle / "bundle.json").read_text())
    assert model["name"] == manifest["name"]
    assert model["preprocessing"] == manifest["preprocessing"]
    assert model["calibration"]["size"] == manifest["calibration"]["size"]


def test_the_same_seed_gives_the_same_bytes_whatever_shares_its_batch(service: Running) -> None:
    alone = sample(service, 5, 7)
    with ThreadPoolExecutor(6) as pool:
        others = [pool.submit(sample, service, 1 + 13 * i % 40, i) for i in range(60)]
        assert all(sample(service, 5, 7) == alone for _ in range(15))
        assert all(json.loads(other.result(PATIENCE))["images"] for other in others)
    for image in json.loads(alone)["images"]:
        assert json.loads(sample(service, 1, image["seed"]))["images"] == [image]


def test_real_images_are_scored_and_noise_is_told_apart(service: Running) -> None:
    made = [base64.b64decode(image["image"]) for image in json.loads(sample(service, 2, 3))["images"]]
    files = [("images", (f"{i}.png", data)) for i, data in enumerate([*made, b"no image", noise_png(0)])]
    results = service.client.post("/v1/scores", files=files).json()["results"]
    assert [result["name"] for result in results] == ["0.png", "1.png", "2.png", "3.png"]
    assert results[2]["error"]["status"] == 422
    for result in (results[0], results[1], results[3]):
        assert len(result["energies"]) == 4
        assert 1 / 251 <= result["p_value"] <= 1
        assert result["is_ood"] == (result["p_value"] <= 0.05)
    assert results[3]["is_ood"]


def test_bad_requests_over_a_real_connection_do_no_harm(service: Running) -> None:
    post = service.client.post
    assert post("/v1/samples", content=b"[" * 20_000, headers={"content-type": "application/json"}).status_code == 400
    assert post("/v1/scores", content=b"x", headers={"content-type": "multipart/form-data"}).status_code == 400
    assert service.client.get("/%ff%fe/../nowhere").status_code == 404
    assert service.client.get("/readyz").status_code == 200


def test_a_body_that_says_it_is_too_long_is_refused_before_it_is_sent(service: Running) -> None:
    connection = http.client.HTTPConnection(service.client.base_url.host, service.client.base_url.port, PATIENCE)
    connection.putrequest("POST", "/v1/samples")
    connection.putheader("Content-Length", str(2**40))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_sigterm_finishes_what_is_in_flight_and_exits_with_0(serve: Running) -> None:
    with ThreadPoolExecutor(4) as pool:
        requests = [pool.submit(sample, serve, 1000, seed) for seed in range(4)]
        # The scrape itself is the fifth. A request that is still on its way would find its connection closed.
        while "\nddaebm_http_requests_in_flight 5.0" not in serve.client.get("/metrics").text:
            assert not any(request.done() for request in requests), "too fast to be caught in flight"
        assert serve.stop(signal.SIGTERM) == 0
        assert [len(json.loads(request.result(PATIENCE))["images"]) for request in requests] == [1000] * 4
    assert "Traceback" not in serve.log.read_text()


def test_sigint_exits_with_0(serve: Running) -> None:
    assert serve.stop(signal.SIGINT) == 0
    assert "Traceback" not in serve.log.read_text()


def test_a_port_in_use_exits_with_1_and_a_line_that_names_it(cli: Cli, debug_bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = cli("serve", "--bundle", debug_bundle, "--port", port)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (error,) = (line for line in done.stderr.splitlines() if not line.startswith("INFO"))
    assert str(port) in error


def change_a_byte(bundle: Path) -> None:
    data = bytearray((bundle / "energy.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "energy.onnx").write_bytes(data)


def lose_a_file(bundle: Path) -> None:
    (bundle / "calibration.npz").unlink()


def come_from_the_future(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps(manifest | {"format_version": 99}))


def be_no_manifest(bundle: Path) -> None:
    (bundle / "bundle.json").write_text("{")


def be_gone(bundle: Path) -> None:
    shutil.rmtree(bundle)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (change_a_byte, "energy.onnx"),
        (lose_a_file, "calibration.npz"),
        (come_from_the_future, "99"),
        (be_no_manifest, "bundle.json"),
        (be_gone, "spoilt"),
    ],
)
def test_a_spoilt_bundle_is_not_served(
    cli: Cli, debug_bundle: Path, tmp_path: Path, spoil: Callable[[Path], None], named: str
) -> None:
    bundle = tmp_path / "spoilt"
    shutil.copytree(debug_bundle, bundle)
    spoil(bundle)
    check_failure(cli("serve", "--bundle", bundle, "--port", "0"), 1, named)


def test_an_unknown_bundle_name_is_named(cli: Cli) -> None:
    check_failure(cli("serve", "--bundle", "nobody"), 1, "nobody")


def test_print_settings_lists_each_with_its_value(cli: Cli) -> None:
    done = cli("serve", "--print-settings", "--port", "7", DDAEBM_PORT="8", DDAEBM_MAX_BATCH="9")
    assert done.returncode == 0
    values = dict(line.partition("  #")[0].split("=", 1) for line in done.stdout.splitlines())
    assert values.keys() == {f"DDAEBM_{name.upper()}" for name in Settings.model_fields}
    assert (values["DDAEBM_PORT"], values["DDAEBM_MAX_BATCH"], values["DDAEBM_HOST"]) == ("7", "9", "127.0.0.1")


def test_sighup_takes_a_changed_bundle_and_keeps_the_old_one_when_it_is_broken(
    debug_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(debug_bundle, folder)
    with running(folder, tmp_path) as service, ThreadPoolExecutor(4) as pool:

        def digest() -> str:
            (model,) = service.client.get("/v1/models").json()["models"]
            return str(model["digest"])

        first, alone = digest(), json.loads(sample(service, 5, 7))["images"]
        manifest = json.loads((folder / "bundle.json").read_text())
        manifest["training"]["note"] = "trained longer"
        (folder / "bundle.json").write_text(json.dumps(manifest))
        load = [pool.submit(sample, service, 20, i) for i in range(40)]
        service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: digest() != first)
        assert len([answer.result(PATIENCE) for answer in load]) == 40  # each of them 200
        second, again = digest(), json.loads(sample(service, 5, 7))
        assert (again["digest"], again["images"]) == (second, alone)

        (folder / "energy.onnx").write_bytes(b"torn")
        service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "reload failed" in service.log.read_text())
        assert "energy.onnx is not the file that bundle.json names" in service.log.read_text()
        assert "Traceback" not in service.log.read_text()
        assert digest() == second
        assert json.loads(sample(service, 5, 7))["images"] == alone
        lines = service.client.get("/metrics").text.splitlines()
        assert 'ddaebm_reloads_total{outcome="failed"} 1.0' in lines
        assert service.stop(signal.SIGTERM) == 0


def test_two_bundles_are_served_by_name(debug_bundle: Path, tmp_path: Path, cli: Cli) -> None:
    with running("fashion-mnist", tmp_path, debug_bundle) as service:
        assert [model["name"] for model in service.client.get("/v1/models").json()["models"]] == [
            "fashion-mnist",
            "debug",
        ]
        answers = [
            service.client.post("/v1/samples", json={"seed": 1, "model": name}).json()
            for name in ("debug", "fashion-mnist")
        ]
        sizes = [Image.open(io.BytesIO(base64.b64decode(answer["images"][0]["image"]))).size for answer in answers]
        assert sizes == [(16, 16), (28, 28)]
