"""`ddaebm sample`, `score` and usage errors, on a real bundle."""

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model.images import make_grid
from model.noise import image_seeds
from tests.e2e.conftest import Cli, Running, check_failure

LIKE_NOTHING = np.random.default_rng(0).integers(256, size=(3, 16, 16), dtype=np.uint8)


def pixels(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)))


def training_images(bundle: Path) -> NDArray[np.uint8]:
    """What the debug recipe learns."""
    from training.data import load_data
    from training.recipes import make_config

    config = make_config(json.loads((bundle / "bundle.json").read_text())["training"]["recipe"])
    return load_data(config.data, config.network)


def test_sample_makes_the_same_images_as_the_service(
    cli: Cli, service: Running, debug_bundle: Path, tmp_path: Path
) -> None:
    response = service.client.post("/v1/samples", json={"n": 70, "seed": 5})
    served = np.stack([pixels(base64.b64decode(image["image"])) for image in response.json()["images"]])[..., None]

    done = cli("sample", "--bundle", debug_bundle, "-n", 70, "--seed", 5, "--out", "made.npy")
    assert (done.returncode, done.stderr) == (0, "")
    made = np.load(tmp_path / "made.npy")
    assert (made.dtype, made.shape) == (np.uint8, (70, 16, 16, 1))
    assert (made == served).all()
    assert [image["seed"] for image in response.json()["images"]] == image_seeds(5, 70).tolist()

    assert cli("sample", "--bundle", debug_bundle, "-n", 70, "--seed", 5, "--out", "made.png").returncode == 0
    assert (pixels((tmp_path / "made.png").read_bytes()) == make_grid(served)[..., 0]).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.npy", "made.png"]


def test_score_writes_a_json_line_an_image_with_the_numbers_of_the_service(
    cli: Cli, service: Running, debug_bundle: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "noise.npy", LIKE_NOTHING)
    Image.fromarray(LIKE_NOTHING[1]).save(tmp_path / "one.png")
    served = service.client.post("/v1/scores", files={"images": ("one.png", (tmp_path / "one.png").read_bytes())})

    done = cli("score", "--bundle", debug_bundle, "noise.npy", "one.png")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    places = [("noise.npy", 0), ("noise.npy", 1), ("noise.npy", 2), ("one.png", 0)]
    assert [(row["path"], row["index"]) for row in rows] == places
    for row in (rows[1], rows[3]):
        (result,) = served.json()["results"]
        assert row["ood_score"] == pytest.approx(result["ood_score"], rel=1e-4)
        assert row["energies"] == pytest.approx(result["energies"], rel=1e-4)
        assert (row["p_value"], row["is_ood"]) == (result["p_value"], result["is_ood"])


def test_score_exits_with_3_only_when_asked_and_only_for_what_is_out_of_distribution(
    cli: Cli, debug_bundle: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "noise.npy", LIKE_NOTHING)
    done = cli("score", "--bundle", debug_bundle, "noise.npy", "--fail-on-ood")
    assert done.returncode == 3
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 3
    assert all(row["is_ood"] for row in rows)

    np.save(tmp_path / "shapes.npy", training_images(debug_bundle)[:20])
    rows = [json.loads(line) for line in cli("score", "--bundle", debug_bundle, "shapes.npy").stdout.splitlines()]
    known = [row["index"] for row in rows if not row["is_ood"]]
    assert len(known) > 10
    np.save(tmp_path / "known.npy", training_images(debug_bundle)[known])
    assert cli("score", "--bundle", debug_bundle, "known.npy", "--fail-on-ood").returncode == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", []),
        ("nonsense", ["nonsense"]),
        ("serve --nonsense", ["--nonsense"]),
        ("serve --port abc", ["--port"]),
        ("serve --port 70000", ["DDAEBM_PORT"]),
        ("train", ["recipe"]),
        ("train debug", ["--out"]),
        ("train debug --out run --steps 0", ["--steps"]),
        ("reproduce nothing --out figure", ["no figure", "toy"]),
        ("reproduce toy", ["--out"]),
        ("train debug --out run --set steps", ["NAME=VALUE"]),
        ("export", ["run"]),
        ("evaluate bundle", ["--data"]),
        ("sample --out x.png -n 0", ["-n"]),
        ("sample --out x.png --seed -1", ["--seed"]),
        (f"sample --out x.png --seed {2**53}", ["--seed"]),
        ("sample --out x.gif", [".png", ".npy"]),
        ("score", ["paths"]),
    ],
)
def test_bad_usage_exits_with_2_and_says_what_is_wrong(call: Cli, command: str, words: list[str]) -> None:
    check_failure(call(*command.split()), 2, *words)


@pytest.mark.parametrize("alpha", ["0", "1", "nan", "0.001"])
def test_an_alpha_that_cannot_work_is_bad_usage(call: Cli, debug_bundle: Path, alpha: str) -> None:
    check_failure(call("score", "--bundle", debug_bundle, "x.png", "--alpha", alpha), 2, "--alpha")


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("score missing.png", "missing.png"),
        ("score text.png", "text.png"),
        ("score floats.npy", "float64"),
        ("score wide.npy", "(16, 16, 1)"),
        ("sample --out missing/x.png", "missing"),
        ("sample --out taken.png", "taken.png"),
    ],
)
def test_a_file_that_cannot_be_used_exits_with_1_and_a_line_that_names_it(
    call: Cli, debug_bundle: Path, tmp_path: Path, command: str, named: str
) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "taken.png").mkdir()
    np.save(tmp_path / "floats.npy", np.zeros((1, 16, 16)))
    np.save(tmp_path / "wide.npy", np.zeros((1, 16, 20), np.uint8))
    check_failure(call(*command.split(), "--bundle", debug_bundle), 1, named)


def test_a_setting_in_the_environment_without_a_meaning_is_bad_usage(cli: Cli) -> None:
    check_failure(cli("serve", DDAEBM_PORT="abc"), 2, "DDAEBM_PORT")


def test_sampling_leaves_no_half_a_file_behind(cli: Cli, debug_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(debug_bundle, bundle)
    (bundle / "sampler.onnx").unlink()
    check_failure(cli("sample", "--bundle", bundle, "--out", "x.png"), 1, "sampler.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
