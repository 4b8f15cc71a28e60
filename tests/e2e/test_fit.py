"""From images to a gate by the commands: `fit`, `calibrate`, and older bundles."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import ddaebm
from ddaebm.model.bundle import MANIFEST, load_bundle, write_bundle
from ddaebm.model.manifest import FORMAT_VERSION
from ddaebm.model.ood.calibration import Fitted
from ddaebm.training.data import load_data
from tests.e2e.conftest import Cli, check_failure, running
from tests.model.test_fitting import surfaces
from tests.model.test_large import weave, with_hole


def of_format(version: int, bundle: Path, out: Path) -> Path:
    """The bundle as earlier releases wrote it, in format 5 or 6."""
    loaded = load_bundle(bundle)
    old, explainer = loaded.scorer, loaded.explainer
    columns = len(old.whitening) + 2 * loaded.config.num_steps + 1  # of complexity the fine detail alone
    old = replace(old, mean=old.mean[:columns], surprise=old.surprise[:, :columns])
    if version == 5:
        explainer, old = replace(explainer, spots=None), replace(old, tails=np.empty((0, 2)))
    files = {name: loaded.read(name) for name in loaded.files if name != "calibration.npz"}
    write_bundle(
        out, "old", loaded.config, loaded.contract, Fitted(old, explainer), loaded.training, loaded.splits, files
    )
    assert json.loads((out / MANIFEST).read_text())["format_version"] == version
    return out


def test_from_images_to_a_gate_in_a_pipeline(call: Cli, debug_bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", surfaces(120)[..., 0])
    done = call("fit", debug_bundle, "--data", "mine.npy", "--out", "gate", "--name", "woven")
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.strip().splitlines()
    assert first == "60 images fitted, 60 calibrate; the smallest p-value is 0.016."
    assert "Fewer than 200 images were fitted" in done.stdout
    assert last.startswith("gate: bundle woven ")
    caught = [float(line.split()[-1].rstrip("%")) for line in done.stdout.splitlines() if line.endswith("%")]
    assert caught == sorted(caught)
    assert len(caught) == 18

    np.save(tmp_path / "new.npy", surfaces(20, seed=1)[..., 0])
    strange = surfaces(1, seed=2)[..., 0]
    strange[:, 5:7, 5:7] = 0
    np.save(tmp_path / "strange.npy", strange)
    done = call("score", "strange.npy", "--bundle", "gate", "--fail-on-ood", "--format", "json")
    assert done.returncode == 3
    row = json.loads(done.stdout)
    assert row["because"] == "spot"
    left, top, width, height = row["box"]
    assert left <= 6 <= left + width
    assert top <= 6 <= top + height
    rows = [
        json.loads(line)
        for line in call("score", "new.npy", "--bundle", "gate", "--format", "json").stdout.splitlines()
    ]
    assert sum(row["is_ood"] for row in rows) < 8


def test_the_result_as_json_alone_on_stdout(call: Cli, debug_bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", surfaces(60)[..., 0])
    done = call("fit", debug_bundle, "--data", "mine.npy", "--out", "gate", "--json", "--hold-out", "0.4")
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    assert (about["fitted"], about["calibrated"]) == (36, 24)
    assert about["digest"] == load_bundle(tmp_path / "gate").digest
    assert "next: ddaebm serve --bundle gate" in done.stderr


@pytest.mark.parametrize("option", ["--alpha", "--hold-out"])
@pytest.mark.parametrize("rate", ["0", "1", "-1", "nan"])
def test_a_rate_that_cannot_be_is_bad_usage(call: Cli, debug_bundle: Path, option: str, rate: str) -> None:
    check_failure(call("fit", debug_bundle, "--data", "x", "--out", "gate", option, rate), 2, option)


def test_calibrate_tells_what_is_caught_and_when_to_fit_in_its_place(
    call: Cli, debug_bundle: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "mine.npy", surfaces(60)[..., 0])
    done = call("calibrate", debug_bundle, "--data", "mine.npy", "--out", "gate")
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if line.endswith("%")]) == 18
    assert f"use `ddaebm fit {debug_bundle} --data mine.npy --out gate`" in done.stdout
    assert call("fit", debug_bundle, "--data", "mine.npy", "--out", "fitted").returncode == 0
    np.save(tmp_path / "more.npy", surfaces(60, seed=1)[..., 0])
    done = call("calibrate", "fitted", "--data", "more.npy", "--out", "again")
    assert "use `ddaebm fit" not in done.stdout


def test_a_bundle_of_the_format_before_is_served_as_it_was_and_brought_forward(
    call: Cli, debug_bundle: Path, tmp_path: Path
) -> None:
    old = of_format(5, debug_bundle, tmp_path / "old")
    np.save(tmp_path / "mine.npy", surfaces(60)[..., 0])
    row = json.loads(call("score", "mine.npy", "--bundle", old, "--format", "json").stdout.splitlines()[0])
    assert row["because"] == "whole"
    assert "box" not in row
    with ddaebm.load(old) as model:
        rows = model.bundle.scorer.whole
        assert rows is not None
        assert model.heatmap(surfaces(2)).shape == (2, 16, 16)
    check_failure(call("fit", old, "--data", "mine.npy", "--out", "gate"), 1, "format 5", "ddaebm export")
    check_failure(call("export", old, "--out", "new"), 2, "--data")
    check_failure(call("export", old, "--data", "mine.npy", "--out", "new"), 1, "not the images")
    np.save(tmp_path / "trained.npy", load_data("shapes", load_bundle(debug_bundle).config)[..., 0])
    done = call("export", old, "--data", "trained.npy", "--out", "new")
    assert done.returncode == 0, done.stderr
    new, before = load_bundle(tmp_path / "new"), load_bundle(debug_bundle)
    assert json.loads((tmp_path / "new" / MANIFEST).read_text())["format_version"] == FORMAT_VERSION
    assert (new.name, new.training, new.splits) == ("old", before.training, before.splits)
    for name in ("energy_net.safetensors", "generator.safetensors", "trained_on.npy"):
        assert new.files[name] == before.files[name]
    np.testing.assert_allclose(new.scorer.calibration_scores, before.scorer.calibration_scores, rtol=1e-3)
    shutil.rmtree(tmp_path / "new")


def test_a_bundle_of_format_6_is_served_calibrated_and_fitted(call: Cli, debug_bundle: Path, tmp_path: Path) -> None:
    old = of_format(6, debug_bundle, tmp_path / "old")
    np.save(tmp_path / "mine.npy", surfaces(60)[..., 0])
    row = json.loads(call("score", "mine.npy", "--bundle", old, "--format", "json").stdout.splitlines()[0])
    assert row["because"] in ("whole", "spot")
    for command, version in (("calibrate", 6), ("fit", FORMAT_VERSION)):
        done = call(command, old, "--data", "mine.npy", "--out", command)
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / command / MANIFEST).read_text())["format_version"] == version


def test_fit_in_python_gives_a_model_that_can_be_saved(debug_bundle: Path, tmp_path: Path) -> None:
    with ddaebm.load(debug_bundle, device="cpu") as model:
        assert model.fit_report is None
        gate = model.fit(surfaces(80), name="woven", seed=2)
    assert (gate.name, gate.calibration_size) == ("woven", 40)
    assert gate.fit_report["power"][0]["caught"] <= gate.fit_report["power"][-1]["caught"]
    result = gate.score(surfaces(30, seed=1))
    assert set(result.because) <= {"whole", "spot"}
    assert ((result.box[:, 2] > 0) == (np.array(result.because) == "spot")).all()
    folder, saved = gate.bundle.path, gate.save(tmp_path / "gate")
    assert ddaebm.load(saved).digest == gate.digest
    del gate
    assert not folder.exists(), "the unsaved bundle goes with its model"
    with ddaebm.load(debug_bundle) as model, pytest.raises(ddaebm.InputError, match="hold_out must be a number"):
        model.fit(surfaces(80), hold_out=1.5)
    with ddaebm.load(debug_bundle) as model, pytest.raises(ddaebm.DataError, match="to fit a score to"):
        model.fit(surfaces(20))


def test_large_images_are_scored_place_by_place(call: Cli, debug_bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", weave(60)[..., 0])
    done = call("fit", debug_bundle, "--data", "mine.npy", "--out", "gate")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"--side 64, chosen from the images: about [\d.]+ s an image on this machine; --side 32: [\d.]+ s\n",
        done.stderr,
    )
    np.save(tmp_path / "new.npy", np.concatenate([weave(3, seed=1), with_hole(weave(2, seed=2))])[..., 0])
    done = call("score", "new.npy", "--bundle", "gate", "--format", "json", "--heatmaps", "pictures")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["is_ood"] for row in rows[3:]] == [True, True]
    for row in rows[3:]:
        left, top, width, height = row["regions"][0]["box"]
        assert left <= 14 < left + width
        assert top <= 42 < top + height
    names = sorted(file.name for file in (tmp_path / "pictures").iterdir())
    assert names == [f"{i:08d}-new.npy_{i}_.png" for i in range(5)]
    with Image.open(tmp_path / "pictures" / names[3]) as picture:
        assert (picture.size, picture.mode) == ((64, 64), "RGB")
    again = call("score", "new.npy", "--bundle", "gate", "--heatmaps", "pictures")
    check_failure(again, 1, "pictures is not empty")
    plain = call("score", "new.npy", "--bundle", "gate", "--format", "json")
    assert [json.loads(line)["ood_score"] for line in plain.stdout.splitlines()] == [row["ood_score"] for row in rows]


def test_a_side_or_mask_that_cannot_be_is_refused_before_the_images_are_read(
    call: Cli, debug_bundle: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "mine.npy", weave(60)[..., 0])
    given = ("fit", debug_bundle, "--data", "mine.npy", "--out", "gate")
    check_failure(call(*given, "--side", 66), 2, "multiple of 4")
    check_failure(call(*given, "--side", 16, "--mask", "mine.npy"), 2, "mask")
    check_failure(call(*given, "--mask", "nowhere.png"), 1, "nowhere.png")
    assert not (tmp_path / "gate").exists()


def test_the_service_scores_large_images_as_the_command_line_does(
    call: Cli, debug_bundle: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "mine.npy", weave(60)[..., 0])
    assert call("fit", debug_bundle, "--data", "mine.npy", "--out", "gate").returncode == 0
    np.save(tmp_path / "new.npy", with_hole(weave(4, seed=2))[..., 0])
    done = call("score", "new.npy", "--bundle", "gate", "--format", "json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    with running(tmp_path / "gate", tmp_path) as service:
        check_service(service.client, (tmp_path / "new.npy").read_bytes(), rows)


def check_service(client: httpx.Client, body: bytes, rows: list[dict[str, Any]]) -> None:
    headers = {"content-type": "application/x-npy"}
    results = client.post("/v1/scores?regions=true", content=body, headers=headers).json()["results"]
    assert [result["ood_score"] for result in results] == [row["ood_score"] for row in rows]
    assert all(result["regions"][0]["strength"] > 1 for result in results)
    (model,) = client.get("/v1/models").json()["models"]
    assert (model["preprocessing"]["width"], model["fit"]["side"]) == (64, 64)
    (image,) = client.post("/v1/samples", json={"n": 1, "seed": 1, "include": ["scores"]}).json()["images"]
    assert 0 < image["p_value"] <= 1
    inputs = client.get("/v2/models/debug-scorer").json()["inputs"]
    outputs = client.get("/v2/models/debug-sampler").json()["outputs"]
    assert (inputs[0]["shape"], outputs[0]["shape"]) == ([-1, 64, 64, 1], [-1, 16, 16, 1])
