"""benchmarks/ood: the sets are what they are called, the numbers are right by hand, and the whole runs on a bundle."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.ood import __main__ as benchmark
from benchmarks.ood import forms
from benchmarks.ood.choice import CHOICE
from benchmarks.ood.report import discoveries, false_alarms, told_apart
from benchmarks.ood.sets import REPORTED, UNSEEN, Images, make_sets
from ddaebm.model.ood.pixels import fit_pixels
from ddaebm.training.data import load_data
from ddaebm.training.recipes import make_config

ALL = REPORTED | UNSEEN | CHOICE


@pytest.fixture(scope="module", params=[1, 3])
def images(request: pytest.FixtureRequest) -> Images:
    """Smooth, bright in the middle, none its own mirror image."""
    y, x = np.mgrid[:28, :28] / 27
    shades = np.linspace(0.5, 1, 6)[:, None, None, None] * np.linspace(0.7, 1, request.param)
    shape = (np.exp(-8 * ((y - 0.4) ** 2 + (x - 0.55) ** 2)) * (0.5 + 0.5 * x))[None, :, :, None]
    return (255 * shape * shades).astype(np.uint8)


def test_a_set_nobody_looked_at_is_neither_reported_nor_chosen_on() -> None:
    assert len(ALL) == len(REPORTED) + len(UNSEEN) + len(CHOICE)
    assert len(UNSEEN) >= 6


@pytest.mark.parametrize("name", ALL)
def test_every_set_has_the_form_of_its_images_and_differs_from_them(name: str, images: Images) -> None:
    made = make_sets(images, {name: ALL[name]})[name]
    assert made.shape == images.shape
    assert made.dtype == np.uint8
    assert all((new != old).any() for new, old in zip(made, images, strict=True))
    assert np.array_equal(made, make_sets(images, ALL)[name])  # whatever is made beside it


def test_sets_keep_of_an_image_what_they_say(images: Images) -> None:
    made = make_sets(images, UNSEEN)
    y, x = np.mgrid[:28, :28]
    board = np.broadcast_to(np.where((y + x) % 2, 16, -16)[..., None], images.shape)
    inside = (images >= 16) & (images <= 239)
    assert np.array_equal((made["checkerboard, ±16"].astype(int) - images)[inside], board[inside])
    assert np.array_equal(made["framed, 4 pixels"][:, 4:-4, 4:-4], images[:, 4:-4, 4:-4])
    assert np.array_equal(made["lower half mirrored"], made["lower half mirrored"][:, ::-1])
    assert np.array_equal(made["four of it"][:, :14, :14], made["four of it"][:, 14:, 14:])
    middle = np.s_[:, 13:15]  # whose rows move by a fifth of a pixel
    moved = np.abs(made["sheared by 0.4"][middle].astype(int) - images[middle])
    assert moved.max() <= 0.2 * np.abs(np.diff(images.astype(int), axis=2)).max() + 1
    noise = make_sets(np.full((50, 28, 28, 1), 127, np.uint8), REPORTED)["salt and pepper, 10 %"]
    assert ((noise == 0) | (noise == 255)).mean() == pytest.approx(0.1, abs=0.01)


def test_the_three_numbers_of_a_set_by_hand() -> None:
    usual, strange = np.arange(100.0), np.arange(20) + 90.5  # 19 of 20 strange ones at 91.5 and above
    row = told_apart(usual, strange)
    assert row["fpr95"] == pytest.approx(np.mean(usual >= 91.5))
    assert row["auroc"] == pytest.approx(np.mean(strange[:, None] > usual))
    assert told_apart(np.zeros(5), np.ones(5)) == {"auroc": 1, "aupr": 1, "fpr95": 0}
    assert told_apart(np.arange(4.0), np.arange(4.0))["auroc"] == 0.5


def test_false_alarms_are_in_their_band_as_often_as_it_says() -> None:
    rng, inside = np.random.default_rng(0), []
    for _ in range(400):
        calibration, scores = np.sort(rng.random(199)), rng.random(500)
        p_values = (200 - np.searchsorted(calibration, scores)) / 200
        inside.append([row["low"] <= row["observed"] <= row["high"] for row in false_alarms(p_values, 199)])
    assert (np.mean(inside, axis=0) > 0.97).all()  # of 99 %, less 4 std


def brute_discoveries(p_values: list[float], strange: int, fdr: float) -> tuple[float, float]:
    """Benjamini and Hochberg 1995 as printed: the largest i with p_(i) <= i·q/m; the last `strange` are strange."""
    ordered = sorted(p_values)
    passing = [p for i, p in enumerate(ordered, 1) if p <= i * fdr / len(ordered)]
    limit = max(passing, default=0.0)
    flagged = [i for i, p in enumerate(p_values) if p <= limit]
    right = sum(i >= len(p_values) - strange for i in flagged)
    return (len(flagged) - right) / max(len(flagged), 1), right / strange


def test_discoveries_are_those_of_the_method_as_it_is_printed() -> None:
    rng = np.random.default_rng(3)
    usual, strange = rng.integers(1, 1001, 300) / 1000, rng.integers(1, 60, 50) / 1000
    again, rows = np.random.default_rng(0), []
    for _ in range(200):
        batch = [*again.choice(usual, 90, replace=False), *again.choice(strange, 10, replace=False)]
        rows.append(brute_discoveries(batch, 10, 0.2))
    false, found = np.mean(rows, axis=0)
    row = discoveries(usual, strange, fdr=0.2, batches=200)
    assert (row["false_discoveries"], row["found"]) == (pytest.approx(false), pytest.approx(found))
    assert 0 < found < 1


def test_false_discoveries_stay_under_what_was_asked_for_with_fresh_calibrations() -> None:
    rng, rates = np.random.default_rng(0), []
    for seed in range(60):
        calibration = np.sort(rng.standard_normal(2_000))
        p_values = [(2_001 - np.searchsorted(calibration, scores)) / 2_001
                    for scores in (rng.standard_normal(900), rng.standard_normal(100) + 3)]  # fmt: skip
        row = discoveries(*p_values, batches=30, seed=seed)
        rates.append(row["false_discoveries"])
        assert row["found"] > 0.1
    assert np.mean(rates) == pytest.approx(0.09, abs=0.02)  # 0.1 of the 90 % that are ordinary


def test_the_whole_on_a_small_bundle(
    debug_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = load_data("shapes", make_config("debug").network)
    np.save(tmp_path / "train.npy", shapes)
    np.save(tmp_path / "test.npy", shapes[:95])
    np.save(tmp_path / "white.npy", np.full((40, 20, 20, 3), 255, np.uint8))
    doc = tmp_path / "doc.md"
    doc.write_text("before\n<!-- ood:debug:begin -->\nold\n<!-- ood:debug:end -->\nafter\n")
    arguments = [str(debug_bundle), "--train", "train.npy", "--test", "test.npy", "--ood", "white=white.npy",
                 "-n", "30", "--out", "out", "--doc", "doc.md",
                 "--plot", "plot.png", "--pictures", "sets.png"]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ood", *arguments])
    monkeypatch.setattr(benchmark, "MOST", 200)
    benchmark.main()

    result = json.loads((tmp_path / "out" / "debug.json").read_text())
    assert result["learnt_from"] == 200
    assert result["reported"] == ["white", *REPORTED]
    assert result["unseen"] == list(UNSEEN)
    assert len(result["detectors"]) == 18
    for row in result["detectors"].values():
        assert set(row["sets"]) == {"white", *REPORTED, *UNSEEN}
        assert row["ms"] > 0
    assert result["detectors"]["PCA reconstruction"]["sets"]["uniform noise"]["auroc"] == 1
    section = (tmp_path / "out" / "debug.md").read_text()
    shown = "![ordinary images, then a row of each set](sets.png)\n\n![AUROC of each set](plot.png)\n\n"
    assert doc.read_text() == f"before\n<!-- ood:debug:begin -->\n{shown}{section}<!-- ood:debug:end -->\nafter\n"
    assert section.strip() in capsys.readouterr().out
    for file in ("plot.png", "sets.png"):
        assert np.asarray(Image.open(io.BytesIO((tmp_path / file).read_bytes()))).std() > 10

    doc.write_text("no marks")
    with pytest.raises(SystemExit, match="<!-- ood:debug:begin -->"):
        benchmark.write_section(doc, "debug", section, {})
    np.save(tmp_path / "test.npy", shapes[:89])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "--test needs 90 images at least" in capsys.readouterr().err
    np.save(tmp_path / "train.npy", shapes[1:])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "--train is not what the bundle was trained on" in capsys.readouterr().err


def test_statistics_of_energy_maps_against_reference_images() -> None:
    rng = np.random.default_rng(0)
    usual = rng.gamma(4, 1, (500, 4, 8, 8)) * np.array([1, 10, 100, 1000])[:, None, None]
    pixels = forms.fit_pixels([usual[:200], usual[200:]])
    mean, std = pixels.moments["z"]
    np.testing.assert_allclose(mean, usual.mean(0))
    np.testing.assert_allclose(std, usual.std(0))
    before = forms.map_statistics(usual[:1], pixels)
    z = (usual[0] - mean) / std
    np.testing.assert_allclose(before["z: 4-norm"][0], np.log((z**4).mean((1, 2))) / 4)
    np.testing.assert_allclose(before["raw: median"][0], np.log(np.sort(usual[0].reshape(4, -1))[:, 32]))
    hot = usual[:1].copy()
    hot[0, 2, 3, 3] *= 20  # one pixel of one level
    after = forms.map_statistics(hot, pixels)
    for name in ("z: largest", "log: largest", "share: 8-norm", "raw: largest"):
        assert after[name][0, 2] > before[name][0, 2] + 0.3
        np.testing.assert_allclose(np.delete(after[name], 2, 1), np.delete(before[name], 2, 1))


def test_the_score_looks_at_pixels_as_the_form_that_was_chosen_does() -> None:
    maps = np.random.default_rng(1).gamma(4, 1, (60, 4, 8, 8)) * np.array([1, 10, 100, 1000])[:, None, None]
    chosen = forms.map_statistics(maps[:9], forms.fit_pixels([maps]))
    ours = fit_pixels(lambda: [maps[:40], maps[40:]]).statistics(maps[:9])
    np.testing.assert_allclose(ours, np.hstack([chosen["log: largest"], chosen["z: 2-norm"]]), rtol=1e-4, atol=1e-5)


def test_statistics_of_the_image_itself_against_their_definitions() -> None:
    images = np.random.default_rng(5).integers(0, 256, (2, 6, 7, 3), dtype=np.uint8)
    x = images.astype(float)
    residuals, laplacian = [], []
    for y, z, c in np.ndindex(6, 7, 3):
        left, above = x[0, y, z - 1, c] if z else 0, x[0, y - 1, z, c] if y else 0
        corner = x[0, y - 1, z - 1, c] if y and z else 0
        residuals.append(abs(x[0, y, z, c] - sorted((left, above, left + above - corner))[1]))
        if 0 < y < 5 and 0 < z < 6:
            around = x[0, y - 1, z, c] + x[0, y + 1, z, c] + x[0, y, z - 1, c] + x[0, y, z + 1, c]
            laplacian.append(abs(around - 4 * x[0, y, z, c]))
    found = {name: compute(images)[0] for name, compute in forms.OF_IMAGE.items()}
    assert found["residual of JPEG-LS's predictor"] == pytest.approx(np.log(np.mean(residuals) + 0.1))
    assert found["Laplacian"] == pytest.approx(np.log(np.mean(laplacian) + 0.1))
    assert found["brightness"] == pytest.approx(x[0].mean())
    assert all(compute(images).shape == (2,) for compute in forms.OF_IMAGE.values())


def test_forms_are_compared_on_choice_images(
    debug_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "train.npy", load_data("shapes", make_config("debug").network))
    command = ["forms", str(debug_bundle), "--train", str(tmp_path / "train.npy"), "--out", str(tmp_path), "-n", "60"]
    monkeypatch.setattr(sys, "argv", command)
    forms.main()
    first, (kept,) = capsys.readouterr().out, tmp_path.glob("*-60.npz")
    lines = first.splitlines()
    assert lines[2].startswith("| without |")
    assert lines[2].endswith("| +0.000 |")
    blank = lines.index("")
    assert blank == 2 + 5 + 2 * (len(forms.RAW) + 4 * len(forms.OF_PIXELS))
    assert lines[blank + 3].startswith("| with pixels |")
    assert len(lines) == blank + 1 + 2 + 1 + 3 * len(forms.OF_IMAGE)
    time = kept.stat().st_mtime_ns
    forms.main()  # from what was kept
    assert (capsys.readouterr().out, kept.stat().st_mtime_ns) == (first, time)
    monkeypatch.setattr(sys, "argv", [*command[:-1], "80"])  # twice 80 are more than there are choice images
    with pytest.raises(SystemExit):
        forms.main()
    assert "-n is 75 at most" in capsys.readouterr().err
