"""benchmarks/ood: the sets are what they are called, the numbers are right by hand, and the whole runs on a bundle."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.ood import __main__ as benchmark
from benchmarks.ood.report import discoveries, false_alarms, told_apart
from benchmarks.ood.sets import LATER, REPORTED, UNSEEN, Images, make_sets
from ddaebm.training.data import load_data
from ddaebm.training.recipes import make_config

ALL = REPORTED | UNSEEN | LATER


@pytest.fixture(scope="module", params=[1, 3])
def images(request: pytest.FixtureRequest) -> Images:
    """Smooth, bright in the middle, none its own mirror image."""
    y, x = np.mgrid[:28, :28] / 27
    shades = np.linspace(0.5, 1, 6)[:, None, None, None] * np.linspace(0.7, 1, request.param)
    shape = (np.exp(-8 * ((y - 0.4) ** 2 + (x - 0.55) ** 2)) * (0.5 + 0.5 * x))[None, :, :, None]
    return (255 * shape * shades).astype(np.uint8)


def test_a_set_nobody_looked_at_is_not_among_the_others() -> None:
    assert len(ALL) == len(REPORTED) + len(UNSEEN) + len(LATER)
    assert len(UNSEEN) >= 6
    assert len(LATER) >= 6


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
    assert result["later"] == list(LATER)
    assert len(result["detectors"]) == 18
    for row in result["detectors"].values():
        assert set(row["sets"]) == {"white", *ALL}
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
        benchmark.write_tables(doc, "debug", section, {})
    np.save(tmp_path / "test.npy", shapes[:89])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "--test needs 90 images at least" in capsys.readouterr().err
    np.save(tmp_path / "train.npy", shapes[1:])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "--train is not what the bundle was trained on" in capsys.readouterr().err
