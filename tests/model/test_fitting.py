"""`fit`: a gate for other images on the frozen networks of a bundle."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ddaebm.model.bundle import Bundle, load_bundle
from ddaebm.model.errors import BundleError, ConfigError, DataError
from ddaebm.model.fitting import LEAST, LEAST_TO_CHOOSE, MARGIN, PREFERRED, choose, fit, work
from ddaebm.model.ood.power import SETS
from ddaebm.model.ood.scoring import FORMS
from ddaebm.model.runtime import OnnxEngine
from ddaebm.training.data import load_data, split

Images = NDArray[np.uint8]


@pytest.fixture(scope="module")
def bundle(debug_bundle: Path) -> Bundle:
    return load_bundle(debug_bundle)


def surfaces(count: int, seed: int = 0) -> Images:
    """Woven surfaces of random brightness, which the networks have never seen."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16]
    phase = rng.integers(0, 4, (count, 2, 1, 1))
    weave = 20 * (((y + phase[:, 0]) % 4 < 2) ^ ((x + phase[:, 1]) % 4 < 2))
    pictures = rng.normal(120, 8, (count, 1, 1)) + weave + rng.normal(0, 4, (count, 16, 16))
    return pictures.clip(0, 255).astype(np.uint8)[..., None]


@pytest.fixture(scope="module")
def gate(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fit(bundle, surfaces(400), tmp_path_factory.mktemp("gate") / "woven", name="woven").bundle


def test_the_networks_stay_and_the_score_is_new(bundle: Bundle, gate: Bundle) -> None:
    changed = {name for name in gate.files if gate.files[name] != bundle.files.get(name)}
    assert changed == {"calibration.npz", "README.md", "faults.png"}
    assert gate.name == "woven"
    assert gate.scorer.mean.tolist() != bundle.scorer.mean.tolist()
    assert len(gate.scorer.calibration_scores) == 200


def test_ordinary_images_pass_and_faulty_ones_do_not(bundle: Bundle, gate: Bundle) -> None:
    new = surfaces(400, seed=1)
    before, after = (OnnxEngine(one, device="cpu").score(new).p_value for one in (bundle, gate))
    assert (before <= 0.05).mean() > 0.5
    assert (after <= 0.05).mean() < 0.12
    holes = new.copy()
    holes[:, 5:9, 6:10] = 0
    scores = OnnxEngine(gate, device="cpu").score(holes)
    assert (scores.p_value <= 0.05).mean() > 0.95
    spots = scores.box[scores.box[:, 2] > 0]
    left, top, width, height = spots.T
    assert len(spots) > 200
    assert ((left < 10) & (left + width > 6) & (top < 9) & (top + height > 5)).mean() > 0.95


def test_the_bundle_tells_how_it_was_fitted_and_what_it_catches(gate: Bundle) -> None:
    about = json.loads((gate.path / "bundle.json").read_text())["fit"]
    assert about == gate.fit
    assert (about["fitted"], about["calibrated"], about["duplicates"]) == (200, 200, 0)
    assert about["smallest_p"] == pytest.approx(1 / 201)
    assert len(about["power"]) == SETS
    assert [row["caught"] for row in about["power"]] == sorted(row["caught"] for row in about["power"])
    caught = {(row["fault"], row["severity"]): row["caught"] for row in about["power"]}
    assert caught["hole", "0.16 diameter / side"] > 0.9
    card = gate.read("README.md").decode()
    assert card.count("## Fitted to other images") == 1
    assert "200 images fitted, 200 calibrate" in card
    assert "| hole | 0.16 diameter / side |" in card
    assert gate.read("faults.png").startswith(b"\x89PNG")


def test_the_table_chooses_the_form_of_the_score(gate: Bundle) -> None:
    assert gate.fit is not None
    forms = gate.fit["forms"]
    assert list(forms) == list(FORMS)
    assert gate.fit["form"] == choose(forms)
    assert forms[gate.fit["form"]] == pytest.approx(np.mean([row["auroc"] for row in gate.fit["power"]]), abs=1e-4)
    assert f"The score has {gate.fit['form']}" in gate.read("README.md").decode()


def test_another_form_than_the_preferred_one_must_gain_more_than_the_margin() -> None:
    other, preferred = FORMS
    assert choose({preferred: 0.8}) == preferred == PREFERRED
    assert choose({other: 0.8 + 0.9 * MARGIN, preferred: 0.8}) == preferred
    assert choose({other: 0.8 + 1.1 * MARGIN, preferred: 0.8}) == other
    assert choose({other: 0.8, preferred: 0.9}) == preferred


@pytest.mark.parametrize("count", [2 * LEAST_TO_CHOOSE - 2, 2 * LEAST_TO_CHOOSE])
def test_few_images_get_the_preferred_form(bundle: Bundle, tmp_path: Path, count: int) -> None:
    made = fit(bundle, surfaces(count), tmp_path / "gate")
    assert count == 2 * LEAST_TO_CHOOSE or made.form == PREFERRED
    assert len(made.forms) == (2 if count == 2 * LEAST_TO_CHOOSE else 1)
    assert ("The score has" in str(made)) == (len(made.forms) == 2)


def test_the_bundle_is_of_the_form_that_was_chosen(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {}
    for form in FORMS:
        monkeypatch.setattr("ddaebm.model.fitting.choose", lambda forms, preferred, form=form: form)
        made = fit(bundle, surfaces(200), tmp_path / form.split()[0])
        assert made.form == form
        scores[form] = made.bundle.scorer.surprise
    first, second = scores.values()
    assert np.abs(first - second).max() > 0.1


def test_the_table_agrees_with_new_images_made_faulty(bundle: Bundle, gate: Bundle) -> None:
    from ddaebm.model.ood.power import painted

    new, told = surfaces(200, seed=2), {(row["fault"], row["severity"]): row["caught"] for row in gate.fit["power"]}
    engine = OnnxEngine(gate, device="cpu")
    for fault, severity, faulty in painted(new, seed=9):
        seen = (engine.score(faulty).p_value <= 0.05).mean()
        assert seen == pytest.approx(told[fault, severity], abs=0.25), (fault, severity)


def test_the_same_seed_gives_the_same_gate_and_the_parts_are_disjoint(bundle: Bundle, tmp_path: Path) -> None:
    images = surfaces(80)
    first, again, other = (fit(bundle, images, tmp_path / str(i), seed=seed).bundle for i, seed in enumerate((3, 3, 4)))
    assert first.digest == again.digest != other.digest
    assert first.files["calibration.npz"] != other.files["calibration.npz"]


@pytest.mark.parametrize(("hold_out", "fitted", "calibrated"), [(0.5, 40, 40), (0.25, 60, 20), (0.75, 20, 60)])
def test_hold_out_is_the_share_that_gives_the_p_values(
    bundle: Bundle, tmp_path: Path, hold_out: float, fitted: int, calibrated: int
) -> None:
    made = fit(bundle, surfaces(80), tmp_path / "gate", hold_out)
    assert (made.fitted, made.calibrated) == (fitted, calibrated)
    assert "Fewer than 200 images were fitted" in str(made)


def test_images_beyond_the_memory_for_a_fit_calibrate(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddaebm.model.fitting._MOST_BYTES", 30 * 4 * 4 * 16 * 16)
    made = fit(bundle, surfaces(100), tmp_path / "gate")
    assert (made.fitted, made.calibrated) == (30, 70)


def test_copies_of_an_image_count_once(bundle: Bundle, tmp_path: Path) -> None:
    """A copy among the fitted images would lower the score of a calibration image."""
    images = surfaces(100)
    made = fit(bundle, np.concatenate([images, images[:30]]), tmp_path / "gate")
    assert (made.fitted, made.calibrated, made.duplicates) == (50, 50, 30)
    assert "30 duplicates were left out" in str(made)
    alone = fit(bundle, images, tmp_path / "alone").bundle
    assert made.bundle.files["calibration.npz"] == alone.files["calibration.npz"]


def test_false_alarms_are_exact_over_splits(bundle: Bundle) -> None:
    """The rate at alpha over calibration sets is floor(alpha·(n + 1))/(n + 1); the score is fitted once."""
    from ddaebm.model.ood.calibration import cross_fit, look, score_images

    engine = OnnxEngine(bundle, device="cpu")
    fitted_on, pool = surfaces(60), surfaces(1500, seed=5)
    cross = cross_fit(fitted_on, look(engine.level_statistics, fitted_on), 59)
    scores = score_images(engine.level_statistics, cross.fitted, pool).ood_score
    rng, alarms = np.random.default_rng(0), []
    for _ in range(1000):
        order = rng.permutation(len(scores))
        calibration, new = np.sort(scores[order[:59]]), scores[order[59:259]]
        p = (1 + 59 - np.searchsorted(calibration, new, side="left")) / 60
        alarms.append((p <= 0.05).mean())
    assert np.mean(alarms) == pytest.approx(3 / 60, abs=0.004)


def test_progress_is_told_to_the_last_image(bundle: Bundle, tmp_path: Path) -> None:
    done = 0

    def tick(images: int, found: bool = False) -> None:
        nonlocal done
        done += images

    fit(bundle, surfaces(90), tmp_path / "gate", tick=tick)
    assert done == work(90, 0.5, False)


def test_too_few_images_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"19 of 39 different images are left .* at least {LEAST} .* --hold-out"):
        fit(bundle, surfaces(39), tmp_path / "gate")
    assert fit(bundle, surfaces(40), tmp_path / "gate").fitted == LEAST
    with pytest.raises(DataError, match="cannot give a p-value of 0"):
        fit(bundle, surfaces(60), tmp_path / "other", alpha=0.01)
    assert not (tmp_path / "other").exists()


def test_images_that_were_trained_on_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    images = surfaces(60)
    images[7] = split(load_data("shapes", bundle.config)).train[0]
    with pytest.raises(DataError, match=r"1 of 60 images were used for training \(indices from 0: 7\)"):
        fit(bundle, images, tmp_path / "gate")


def test_its_own_folder_other_folders_and_bad_names_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="would be overwritten"):
        fit(bundle, surfaces(60), bundle.path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="not a bundle"):
        fit(bundle, surfaces(60), tmp_path)
    with pytest.raises(ConfigError, match="cannot be named"):
        fit(bundle, surfaces(60), tmp_path / "gate", name="a/b")


def test_a_gate_can_be_fitted_and_calibrated_again(bundle: Bundle, gate: Bundle, tmp_path: Path) -> None:
    from ddaebm.model.recalibration import calibrate

    again = fit(gate, surfaces(80, seed=7), tmp_path / "again").bundle
    assert again.read("README.md").decode().count("## Fitted to other images") == 1
    assert again.name == "woven"
    new, before, caught = calibrate(gate, surfaces(60, seed=8), tmp_path / "calibrated", 0.05)
    assert before < 0.25
    assert len(caught) == SETS
    assert new.scorer.tails.tolist() == gate.scorer.tails.tolist()
