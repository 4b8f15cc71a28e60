"""The evaluation report of a real bundle, compared with brute force."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ddaebm.model.bundle import load_bundle
from ddaebm.model.ood.calibration import Fitted
from ddaebm.model.ood.conformal import false_alarm_interval
from ddaebm.model.ood.power import auroc
from ddaebm.model.runtime import OnnxEngine
from ddaebm.training.data import load_data, split
from ddaebm.training.evaluate import ood_report


@pytest.fixture(scope="module")
def runtime(debug_bundle: Path) -> OnnxEngine:
    return OnnxEngine(load_bundle(debug_bundle), device="cpu", threads=1)


def test_report_is_what_the_scores_say(runtime: OnnxEngine) -> None:
    inside = split(load_data("shapes", runtime.bundle.config)).choice
    outside = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 1), dtype=np.uint8)
    scorer = runtime.bundle.scorer
    report = ood_report(runtime.level_statistics, runtime.bundle.fitted, inside, {"noise": outside, "itself": inside})
    a, b = runtime.score(inside), runtime.score(outside)

    assert report["test_images"] == len(inside)
    for row in report["false_alarms"]:
        assert row["observed"] == pytest.approx((a.p_value <= row["alpha"]).mean(), abs=1.5 / len(inside))
        assert (row["low"], row["high"]) == false_alarm_interval(row["alpha"], len(scorer.calibration_scores))
    noise = report["ood"]["noise"]
    assert noise["images"] == 20
    assert noise["auroc"] == pytest.approx(auroc(a.ood_score, b.ood_score), abs=1e-3)
    assert noise["detected"] == {"0.01": 1.0, "0.05": 1.0, "0.1": 1.0}
    energies = [auroc(a.energies[:, k], b.energies[:, k]) for k in range(4)]
    assert noise["auroc_of_each_energy"] == pytest.approx(energies, abs=1e-3)
    assert report["ood"]["itself"]["auroc"] == pytest.approx(0.5)


def test_an_alpha_that_can_never_fire_is_left_out(runtime: OnnxEngine) -> None:
    whole = runtime.bundle.scorer
    scorer = dataclasses.replace(whole, calibration_scores=whole.calibration_scores[:30])
    fitted = Fitted(scorer, runtime.explainer)
    images = load_data("shapes", runtime.bundle.config)[:10]
    report = ood_report(runtime.level_statistics, fitted, images, {"same": images})
    assert [row["alpha"] for row in report["false_alarms"]] == [0.05, 0.1]
    assert set(report["ood"]["same"]["detected"]) == {"0.05", "0.1"}


def test_an_image_at_alpha_is_an_alarm(runtime: OnnxEngine) -> None:
    whole = runtime.bundle.scorer
    images = load_data("shapes", runtime.bundle.config)[:60]
    # With 19 calibration scores p-values are multiples of 1/20, so many are 0.05 or 0.1 exactly.
    scores = np.sort(runtime.score(images).ood_score)
    scorer = dataclasses.replace(whole, calibration_scores=scores[3::3][:19])
    fitted = Fitted(scorer, runtime.explainer)
    report = ood_report(runtime.level_statistics, fitted, images, {"same": images})
    p_values = scorer.p_value(runtime.score(images).ood_score)
    for row in report["false_alarms"]:
        alpha = row["alpha"]
        assert row["observed"] == report["ood"]["same"]["detected"][str(alpha)] == (p_values <= alpha).mean()
        assert row["observed"] > (p_values < alpha).mean()
    assert [row["alpha"] for row in report["false_alarms"]] == [0.05, 0.1]
