"""`ddaebm sample`, `score` and usage errors, on a real bundle."""

import csv
import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ddaebm.model.images.encode import encode_png
from ddaebm.model.ood.conformal import fdr_threshold
from ddaebm.service.http.auth import hash_key
from ddaebm.service.settings import Settings
from tests.e2e.conftest import COMMAND, Cli, Running, check_failure, environment

LIKE_NOTHING = np.random.default_rng(0).integers(256, size=(3, 16, 16), dtype=np.uint8)


def pixels(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)))


def training_images(bundle: Path) -> NDArray[np.uint8]:
    """Return the images that the debug recipe learns."""
    from ddaebm.training.data import load_data
    from ddaebm.training.recipes import make_config

    config = make_config(json.loads((bundle / "bundle.json").read_text())["training"]["recipe"])
    return load_data(config.data, config.network)


def test_score_writes_a_json_line_an_image_with_the_numbers_of_the_service(
    cli: Cli, service: Running, debug_bundle: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "noise.npy", LIKE_NOTHING)
    Image.fromarray(LIKE_NOTHING[1]).save(tmp_path / "one.png")
    served = service.client.post("/v1/scores", files={"images": ("one.png", (tmp_path / "one.png").read_bytes())})

    done = cli("score", "--bundle", debug_bundle, "noise.npy", "one.png", "--format", "json")
    assert (done.returncode, done.stderr) == (0, "4 images: 4 out of distribution (100.0%), 0 unreadable\n")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    places = [("noise.npy[0]", 0), ("noise.npy[1]", 1), ("noise.npy[2]", 2), ("one.png", 3)]
    assert [(row["name"], row["index"]) for row in rows] == places
    for row in (rows[1], rows[3]):
        (result,) = served.json()["results"]
        assert row["ood_score"] == pytest.approx(result["ood_score"], rel=1e-4)
        assert row["energies"] == pytest.approx(result["energies"], rel=1e-4)
        assert (row["p_value"], row["is_ood"]) == (result["p_value"], result["is_ood"])


def test_score_exits_with_3_only_when_asked_and_only_for_what_is_out_of_distribution(
    cli: Cli, debug_bundle: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "noise.npy", LIKE_NOTHING)
    done = cli("score", "--bundle", debug_bundle, "noise.npy", "--fail-on-ood", "--format", "json")
    assert done.returncode == 3
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 3
    assert all(row["is_ood"] for row in rows)

    np.save(tmp_path / "shapes.npy", training_images(debug_bundle)[:20])
    done = cli("score", "--bundle", debug_bundle, "shapes.npy", "--format", "json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
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
        ("reproduce toy --out figure --bundle fashion-mnist", ["toy", "no --bundle", "--dataset"]),
        ("train debug --out run --set steps", ["NAME=VALUE"]),
        ("export", ["run"]),
        ("evaluate bundle", ["--data"]),
        ("sample --out x.png -n 0", ["-n"]),
        ("sample --out x.png --seed -1", ["--seed"]),
        (f"sample --out x.png --seed {2**53}", ["--seed"]),
        ("sample --out x.gif", [".png", ".npy"]),
        ("sample --out x.png -n 4097", ["4096"]),
        ("sample --out missing/x.png", ["no folder missing"]),
        ("train images --out run", ["--data"]),
        ("train debug --out run --size 32", ["--size", "images"]),
        ("train images --data x --out run --size 3x", ["WIDTHxHEIGHT"]),
        ("train images --data x --out run --channels 4", ["--channels"]),
        ("score x.png --format xml", ["--format", "csv"]),
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
        ("score floats.npy", "<f8"),
        ("score text.zip", "text.zip"),
    ],
)
def test_a_file_that_cannot_be_used_exits_with_1_and_a_line_that_names_it(
    call: Cli, debug_bundle: Path, tmp_path: Path, command: str, named: str
) -> None:
    (tmp_path / "text.png").write_text("no image")
    np.save(tmp_path / "floats.npy", np.zeros((1, 16, 16)))
    (tmp_path / "text.zip").write_text("no archive")
    check_failure(call(*command.split(), "--bundle", debug_bundle), 1, named)


def test_a_mistyped_setting_is_said(cli: Cli) -> None:
    done = cli("serve", "--print-settings", DDAEBM_PROT="1")
    assert (done.returncode, done.stderr) == (0, "ddaebm: DDAEBM_PROT is not a setting; see --print-settings\n")


def test_calibrate_gives_a_bundle_its_p_values_anew(cli: Cli, debug_bundle: Path, tmp_path: Path) -> None:
    images = 255 - training_images(debug_bundle)[:100]
    np.save(tmp_path / "inverted.npy", images)
    done = cli("calibrate", debug_bundle, "--data", "inverted.npy", "--out", "new", "--alpha", "0.1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"p <= 0\.1 above a score of [\d.]+; before, above [\d.]+\n", done.stdout)
    assert "of these 100 images" in done.stdout
    assert "99 % interval" in done.stdout
    done = cli("score", "--bundle", "new", "inverted.npy", "--alpha", "0.1", "--format", "json")
    assert sum(json.loads(line)["is_ood"] for line in done.stdout.splitlines()) == 9, (
        "p = 10/101 is below 0.1, 11/101 not"
    )
    check_failure(cli("calibrate", debug_bundle, "--data", "inverted.npy", "--out", "x", "--alpha", "0.001"), 1, "999")
    check_failure(cli("calibrate", debug_bundle, "--data", "inverted.npy", "--out", "x", "--alpha", "1"), 2, "--alpha")
    np.save(tmp_path / "known.npy", training_images(debug_bundle))
    check_failure(cli("calibrate", debug_bundle, "--data", "known.npy", "--out", "x"), 1, "were used for training")
    assert not (tmp_path / "x").exists()


def test_fdr_selects_among_all_images_and_loses_none(cli: Cli, debug_bundle: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "mixed.zip", "w") as archive:
        archive.writestr("words.png", b"no image")
        for i, pixels in enumerate(LIKE_NOTHING[:3]):
            archive.writestr(f"noise-{i}.png", encode_png(pixels[..., None]))
    np.save(tmp_path / "shapes.npy", training_images(debug_bundle)[:40])
    (tmp_path / "cut.npy").write_bytes((tmp_path / "shapes.npy").read_bytes()[:-1])
    command = ("score", "--bundle", debug_bundle, "mixed.zip", "cut.npy", "--fdr", "0.2", "--format")
    done = cli(*command, "json")
    assert done.returncode == 1
    assert done.stderr == "ddaebm: cut.npy: truncated: it holds 39 of 40 images; copy it again\n"
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["index"] for row in rows] == list(range(43))
    assert "error" in rows[0]
    assert "selected" not in rows[0]
    p_values = np.array([row["p_value"] for row in rows[1:]])
    selected = p_values <= fdr_threshold(p_values, 0.2)
    assert [row["selected"] for row in rows[1:]] == selected.tolist()
    assert selected[:3].all()
    verdicts = [line.split()[0] for line in cli(*command, "table").stdout.splitlines()[1:]]
    assert verdicts == ["error", *("ood" if flag else "in" for flag in selected)]
    done = cli("score", "--bundle", debug_bundle, "mixed.zip", "--fdr", "0.2", "--fail-on-ood")
    assert (done.returncode, done.stderr) == (3, "4 images: 3 out of distribution (100.0%), 1 unreadable\n")
    check_failure(cli("score", "--bundle", debug_bundle, "mixed.zip", "--fdr", "1e-4"), 2, "--fdr")


def test_an_unreadable_image_is_a_row_of_its_own_and_exit_code_1(cli: Cli, debug_bundle: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("words.png", b"no image")
        archive.writestr("noise.png", encode_png(LIKE_NOTHING[0][..., None]))
    done = cli("score", "--bundle", debug_bundle, "two.zip", "--format", "csv")
    assert done.returncode == 1
    assert done.stderr == "2 images: 1 out of distribution (100.0%), 1 unreadable\n"
    broken, noise = csv.DictReader(io.StringIO(done.stdout))
    assert (broken["name"], broken["is_ood"], broken["p_value"]) == ("two.zip:words.png", "", "")
    assert "not a readable image" in broken["error"]
    assert (noise["index"], noise["is_ood"], noise["resized"], noise["error"]) == ("1", "true", "false", "")
    assert len(noise["energies"].split()) == 4
    assert cli("score", "--bundle", debug_bundle, "two.zip", "--fail-on-ood").returncode == 3


def test_rows_before_an_archive_breaks_off_are_not_lost(cli: Cli, debug_bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "cut.npy", np.zeros((100, 16, 16), np.uint8))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-1])
    done = cli("score", "--bundle", debug_bundle, "cut.npy")
    assert done.returncode == 1
    assert done.stderr == "ddaebm: cut.npy: truncated: it holds 99 of 100 images; copy it again\n"
    assert len(done.stdout.splitlines()) == 1 + 99


def test_output_that_nobody_reads_on_is_no_error(debug_bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "many.npy", np.zeros((5_000, 16, 16), np.uint8))
    command = [*COMMAND, "score", "--bundle", str(debug_bundle), "many.npy"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_a_setting_in_the_environment_without_a_meaning_is_bad_usage(cli: Cli) -> None:
    check_failure(cli("serve", DDAEBM_PORT="abc"), 2, "DDAEBM_PORT")


def test_a_key_that_is_made_opens_the_service_that_is_given_its_hash(cli: Cli) -> None:
    client, server = cli("key").stdout.splitlines()
    secret, hashed = client.removeprefix("Authorization: Bearer "), server.removeprefix("DDAEBM_API_KEYS=")
    assert hash_key(secret) == hashed
    assert Settings(_env_file=None, api_keys=hashed).api_keys == (hashed,)


@pytest.mark.parametrize("arguments", [["train", "debug", "--out", "run"], ["reproduce", "toy", "--out", "figure"]])
def test_where_only_serving_is_installed_a_line_says_what_training_needs(arguments: list[str], tmp_path: Path) -> None:
    program = "import sys; sys.modules['torch'] = None; from ddaebm.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    check_failure(done, 1, "this needs torch, which is not installed here; pip install", "'.[cpu,train]'")


def test_the_largest_image_is_an_option(call: Cli, debug_bundle: Path, tmp_path: Path) -> None:
    Image.new("RGB", (5000, 4000), (90, 60, 30)).save(tmp_path / "photo.jpg")
    command = ["score", "photo.jpg", "--bundle", debug_bundle]
    assert call(*command).returncode == 0
    refused = call(*command, "--max-pixels", 1_000_000)
    assert refused.returncode == 1
    assert "over the limit of 1000000" in refused.stdout
    refused = call("train", "images", "--data", "photo.jpg", "--size", 16, "--out", "run", "--max-pixels", 1_000_000)
    check_failure(refused, 1, "over the limit of 1000000", "raise the limit (--max-pixels)")


def test_images_are_numbered_across_batches(call: Cli, debug_bundle: Path, tmp_path: Path) -> None:
    """64 images are scored at a time."""
    np.save(tmp_path / "a.npy", np.repeat(LIKE_NOTHING, 50, axis=0)[:130])
    np.save(tmp_path / "b.npy", LIKE_NOTHING)
    done = call("score", "--bundle", debug_bundle, "a.npy", "b.npy", "--format", "json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["index"] for row in rows] == list(range(133))
    assert [row["name"] for row in rows] == [f"a.npy[{i}]" for i in range(130)] + [f"b.npy[{i}]" for i in range(3)]
