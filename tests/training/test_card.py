"""The model card describes the bundle, and states no result that was not measured."""

from typing import Any

import numpy as np

from ddaebm.model.ood.scoring import Scorer
from ddaebm.training.card import model_card

SCORER = Scorer(np.zeros(1), np.eye(1), np.zeros((0, 1)), np.arange(249.0), np.empty((0, 2)))
TRAINING = {"trained_steps": 1234, "batch_size": 56, "seed": 7, "torch": "9.9"}
SPLITS = {"train": {"count": 2400, "sha256": "abc"}, "calibration": {"count": 249, "sha256": "def"}}
REPORT: dict[str, Any] = {
    "test_images": 512,
    "false_alarms": [{"alpha": 0.05, "observed": 0.0488, "low": 0.02, "high": 0.0912}],
    "ood": {
        "digits": {"images": 99, "auroc": 0.98765, "auroc_of_each_energy": [0.5, 0.9721], "detected": {"0.05": 0.875}}
    },
}


def card(report: dict[str, Any] | None) -> str:
    return model_card("demo", "ddaebm train debug --out RUN", TRAINING, SPLITS, SCORER, report)


def test_card_tells_name_command_data_and_limits() -> None:
    text = card(None)
    assert text.startswith("# demo\n")
    assert "    ddaebm train debug --out RUN\n" in text
    assert "1234 steps of batch 56, seed 7,\ntorch 9.9." in text
    assert "| train | 2400 | `abc` |\n| calibration | 249 | `def` |" in text
    assert "smallest possible p-value is 0.004 (249 calibration" in text


def test_a_model_that_was_not_evaluated_says_so() -> None:
    assert "Not evaluated" in card(None)
    assert "AUROC" not in card(None)


def test_the_report_s_numbers_stand_on_the_card() -> None:
    text = card(REPORT)
    assert "Not evaluated" not in text
    assert "False alarms on 512 test images" in text
    assert "| 0.05 | 0.0488 | 0.0200 to 0.0912 |" in text
    assert "| digits | 99 | 0.9877 | 0.500, 0.972 | 0.875 |" in text


def test_no_line_of_a_paragraph_is_indented_into_code_but_the_command() -> None:
    indented = [line for line in card(REPORT).splitlines() if line.startswith("    ")]
    assert indented == ["    ddaebm train debug --out RUN"]


def test_samples_stand_beside_what_a_perfect_model_would_reach() -> None:
    measured = {"fd_classifier": 12.345, "kid": 0.01234, "precision": 0.71, "recall": 0.42}
    floor = {"images": 800, "fd_classifier": 1.5, "kid": 0.0002, "precision": 0.9, "recall": 0.91}
    samples = {"images": 1000, "seed": 3, "classifier": "abcdef0123456789", **measured, "floor": floor,
               "classes": {"cat": 600, "dog": 400}}  # fmt: skip
    text = card({**REPORT, "samples": samples})
    assert "1000 samples of seed 3 against the test images" in text
    assert "`abcdef012345`" in text
    assert (
        "| samples | 12.35 | 0.0123 | 0.710 | 0.420 |\n| unseen real images | 1.50 | 0.0002 | 0.900 | 0.910 |" in text
    )
    assert "takes the first 1000 samples for: cat 600, dog 400." in text
    assert "FD-classifier" not in card(REPORT)
