"""Held-out images -> a score with p-values and what explains it; and the same anew for a user's own images."""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.bundle import Bundle, rewrite_bundle
from ddaebm.model.errors import BundleError, DataError
from ddaebm.model.explain import Explainer, fit_explainer
from ddaebm.model.images import fingerprints
from ddaebm.model.parallel import in_order, usable_cores
from ddaebm.model.pixels import Pixels, fit_pixels
from ddaebm.model.runtime import LevelStatistics, OnnxEngine, Session, level_statistics, score_rows
from ddaebm.model.scoring import Scorer, calibrate_scorer, fit_scorer, require_enough, weights_beside

BATCH = 250
_CARD_HEADING = "\n## Calibrated anew\n"


def level_rows(energy: Session, pixels: Pixels, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Rows of `model.runtime.score_rows` for images (N, H, W, C), a batch at a time."""
    return np.concatenate([score_rows(part, levels, pixels) for part, levels in _levels(energy, images)])


def fit(
    energy: Session, reference: NDArray[np.uint8], calibration: NDArray[np.uint8]
) -> tuple[Pixels, Scorer, Explainer]:
    """Score and explanations of a new model, from images that its networks never saw.

    The reference images go through the network three times, so that no more than a few batches of energy maps are in
    memory.

    Args:
        reference: standardises; (m, H, W, C).
        calibration: gives the p-values; (n, H, W, C), disjoint from `reference`.

    Raises:
        ConfigError: too few images.
    """
    require_enough(len(reference), len(calibration))
    pixels = fit_pixels(lambda: (levels.energy_map for _, levels in _levels(energy, reference)))
    num_steps = len(pixels.pixel_mean)
    rows, calibration_rows = (level_rows(energy, pixels, images) for images in (reference, calibration))
    scorer = fit_scorer(rows, calibration_rows, num_steps, weights_beside(num_steps))
    return pixels, scorer, fit_explainer(calibration_rows[:, :num_steps], pixels)


def calibrate(
    bundle: Bundle, images: NDArray[np.uint8], out: Path, alpha: float, name: str | None = None
) -> tuple[Bundle, float]:
    """The bundle with p-values of `images` in place of its own, written to `out`; what it computes is the same.

    Args:
        images: what the model will be sent while all is well, (n, H, W, C) in the contract's form; never
            those that it was trained on, which it knows too well.
        alpha: the false-alarm rate that is meant, which says how many images it takes.
        name: of the new bundle, where it is to be served beside the old one.

    Returns:
        The new bundle, and the share of `images` that would have raised an alarm at `alpha` before.

    Raises:
        DataError: too few images, or some were trained on.
        BundleError: `out` holds something that is not a bundle, or is the bundle itself.
    """
    if out.resolve() == bundle.path.resolve():
        raise BundleError(f"{out} is the bundle that is calibrated, and would be lost; give another --out")
    needed = math.ceil(1 / alpha - 1 - 1e-9)
    if len(images) < needed:
        raise DataError(
            f"{len(images)} images cannot give a p-value of {alpha:g}: it takes at least {needed},"
            f" and {20 * needed} for a false-alarm rate near it"
        )
    known = np.flatnonzero(np.isin(fingerprints(images), bundle.fingerprints()))
    if len(known):
        places = ", ".join(map(str, known[:5])) + (", …" if len(known) > 5 else "")
        raise DataError(
            f"{len(known)} of {len(images)} images were trained on (in order, from 0: {places});"
            " the model knows them too well to calibrate on: leave them out"
        )
    rows = level_rows(OnnxEngine(bundle, device="cpu").energy, bundle.pixels, images)
    scorer = calibrate_scorer(bundle.scorer, rows)
    before = float((bundle.scorer.p_value(bundle.scorer.ood_score(rows)) <= alpha).mean())
    explainer = fit_explainer(rows[:, : bundle.config.num_steps], bundle.pixels)
    source = {"count": len(images), "sha256": hashlib.sha256(images.tobytes()).hexdigest(), "replaces": bundle.digest}
    card = bundle.read("README.md").decode().partition(_CARD_HEADING)[0]
    card += _CARD_HEADING + (
        f"\nThe p-values are those of {len(images)} other images (sha256 of the pixels `{source['sha256']}`).\n"
        f"The smallest possible one is {scorer.smallest_p:.2g}. What is said above of false alarms, of p-values and of"
        " what is caught is of the calibration before.\n"
    )
    return rewrite_bundle(bundle, out, name, scorer, explainer, source, {"README.md": card.encode()}), before


def _levels(energy: Session, images: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.uint8], LevelStatistics]]:
    parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    return in_order(lambda part: (part, level_statistics(energy, part)), parts, usable_cores())
