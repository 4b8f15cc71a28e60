"""Metrics of the detectors, as numbers and as Markdown."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import betabinom
from sklearn.metrics import average_precision_score, roc_curve

from benchmarks.ood.peers import OURS, Detector, Floats, Looked
from ddaebm.model.ood.conformal import fdr_threshold
from ddaebm.model.ood.power import auroc

ORDINARY, STRANGE = 90, 10  # images in a batch that `fdr` judges


def told_apart(usual: Floats, strange: Floats) -> dict[str, float]:
    """Out of distribution is the positive class in each: fpr95 is the share of `usual` flagged where 95 % of
    `strange` are. aupr depends on how many there are of each: here as many."""
    truth, scores = np.repeat([0, 1], [len(usual), len(strange)]), np.concatenate([usual, strange])
    false, true, _ = roc_curve(truth, scores)
    return {
        "auroc": auroc(usual, strange),
        "aupr": float(average_precision_score(truth, scores)),
        "fpr95": float(false[np.searchsorted(true, 0.95)]),
    }


def compare(
    detectors: Mapping[str, Detector], inside: Looked, outside: Mapping[str, Looked], network: bool
) -> dict[str, dict[str, Any]]:
    """{detector: {"ms" of one core an image, "network", "sets"}}.

    Args:
        network: the detectors need the network, whose time then counts.
    """
    report = {}
    for name, detector in detectors.items():
        began = time.process_time()
        usual = detector(inside)
        seconds = time.process_time() - began + network * inside.seconds
        sets = {label: told_apart(usual, detector(looked)) for label, looked in outside.items()}
        report[name] = {"ms": 1e3 * seconds / len(usual), "network": network, "sets": sets}
    return report


def false_alarms(p_values: Floats, calibration: int) -> list[dict[str, float]]:
    """Observed false-alarm rates over m test images, with the 99 % beta-binomial band."""
    rows = []
    for alpha in (0.01, 0.05, 0.1):
        j = int(np.floor(alpha * (calibration + 1) + 1e-9))
        low, high = betabinom.ppf([0.005, 0.995], len(p_values), j, calibration + 1 - j) / len(p_values)
        rows.append(
            {"alpha": alpha, "observed": float((p_values <= alpha).mean()), "low": float(low), "high": float(high)}
        )
    return rows


def discoveries(
    usual: Floats, strange: Floats, fdr: float = 0.1, batches: int = 1_000, seed: int = 0
) -> dict[str, float]:
    """False discovery rate and detection rate, over batches of 100 p-values of which a tenth are OOD."""
    rng, false, found = np.random.default_rng(seed), [], []
    for _ in range(batches):
        inside, outside = rng.choice(usual, ORDINARY, replace=False), rng.choice(strange, STRANGE, replace=False)
        limit = fdr_threshold(np.concatenate([inside, outside]), fdr)
        wrong, right = (inside <= limit).sum(), (outside <= limit).sum()
        false.append(wrong / max(wrong + right, 1))
        found.append(right / STRANGE)
    return {"fdr": fdr, "false_discoveries": float(np.mean(false)), "found": float(np.mean(found))}


def auroc_table(detectors: Mapping[str, Any], labels: list[str]) -> str:
    """One row per detector; the best of each set in bold."""
    values = {name: [round(row["sets"][label]["auroc"], 3) for label in labels] for name, row in detectors.items()}
    best = [max(column) for column in zip(*values.values(), strict=True)]
    lines = [f"| detector | {' | '.join(labels)} | core-ms an image |", "|---" * (len(labels) + 2) + "|"]
    for name, row in values.items():
        shown = [f"**{v:.3f}**" if v == top else f"{v:.3f}" for v, top in zip(row, best, strict=True)]
        lines.append(f"| {name} | {' | '.join(shown)} | {detectors[name]['ms']:.2f} |")
    return "\n".join(lines)


def sets_table(detectors: Mapping[str, Any]) -> str:
    """One row per set: AUROC, AUPR and FPR of the score, and the best peer."""
    lines = ["| set | AUROC | AUPR | FPR at 95 % TPR | best peer | its AUROC |", "|---" * 6 + "|"]
    for label, own in detectors[OURS]["sets"].items():
        others = {name: row["sets"][label]["auroc"] for name, row in detectors.items() if name != OURS}
        best = max(others, key=lambda name: others[name])
        numbers = f"{own['auroc']:.3f} | {own['aupr']:.3f} | {own['fpr95']:.3f}"
        lines.append(f"| {label} | {numbers} | {best} | {others[best]:.3f} |")
    return "\n".join(lines)


def promises_table(result: Mapping[str, Any]) -> str:
    lines = [f"| on all {result['test_images']:,} test images | |", "|---|---|"]
    for row in result["false_alarms"]:
        band = f"the 99 % beta-binomial band is {row['low']:.2%} to {row['high']:.2%}"
        lines.append(f"| false alarms at alpha = {row['alpha']} | {row['observed']:.2%}; {band} |")
    for name, row in result["discoveries"].items():
        what = f"false discovery rate {row['false_discoveries']:.1%}; {row['found']:.0%} of {name} is found"
        lines.append(f"| `fdr={row['fdr']}`, 1,000 batches of 90 ordinary images and 10 of {name} | {what} |")
    return "\n".join(lines)


def markdown(result: Mapping[str, Any]) -> str:
    """The whole report, as in docs/ood.md."""
    detectors, parts = result["detectors"], []
    parts.append(f"AUROC of the bundle `{result['bundle'][:12]}`, {result['images']:,} images a set:")
    parts.append(auroc_table(detectors, result["reported"]))
    parts.append("On the sets that nobody had looked at before the first form of the score:")
    parts.append(auroc_table(detectors, result["unseen"]))
    parts.append("On those that nobody had looked at before the present one:")
    parts.append(auroc_table(detectors, result["later"]))
    parts.append("The score, out of distribution the positive class, and as many images of either:")
    parts += [sets_table(detectors), promises_table(result)]
    return "\n\n".join(parts)
