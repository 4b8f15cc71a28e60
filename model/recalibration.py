"""Recalibrate a bundle: new p-values from a user's own images. Networks and OOD scores stay the same."""

import hashlib
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.bundle import Bundle, require_replaceable, rewrite_bundle
from ddaebm.model.errors import BundleError, DataError
from ddaebm.model.images.arrays import fingerprints
from ddaebm.model.manifest import check_name
from ddaebm.model.ood.calibration import level_rows
from ddaebm.model.ood.explain import fit_explainer
from ddaebm.model.ood.scoring import calibrate_scorer
from ddaebm.model.runtime import OnnxEngine

_CARD_HEADING = "\n## Calibrated anew\n"


def calibrate(
    bundle: Bundle, images: NDArray[np.uint8], out: Path, alpha: float, name: str | None = None
) -> tuple[Bundle, float]:
    """Write a copy of `bundle` to `out` whose p-values are calibrated on `images`.

    Args:
        images: In-distribution images, uint8 (n, H, W, C) in the contract's form. Training images are refused, because
            the model scores them lower than new images.
        alpha: The intended false-alarm rate, which determines how many images are needed.
        name: Name of the new bundle, for serving it beside the old one; None keeps the name.

    Returns:
        The new bundle, and the share of `images` that the old calibration flags at `alpha`.

    Raises:
        ConfigError: A bundle cannot have this name.
        DataError: There are too few images, or some were used for training.
        BundleError: `out` holds something that is not a bundle, or is the folder of `bundle`.
    """
    if out.resolve() == bundle.path.resolve():
        raise BundleError(f"{out} is the bundle to calibrate and would be overwritten; give another --out")
    if name is not None:
        check_name(name)
    require_replaceable(out)
    needed = math.ceil(1 / alpha - 1 - 1e-9)
    if len(images) < needed:
        raise DataError(
            f"{len(images)} images cannot give a p-value of {alpha:g}; give at least {needed} images,"
            f" or {20 * needed} for a false-alarm rate near alpha"
        )
    known = np.flatnonzero(np.isin(fingerprints(images), bundle.fingerprints()))
    if len(known):
        places = ", ".join(map(str, known[:5])) + (", …" if len(known) > 5 else "")
        raise DataError(
            f"{len(known)} of {len(images)} images were used for training (indices from 0: {places});"
            " leave them out, because p-values would not be valid"
        )
    rows = level_rows(OnnxEngine(bundle, device="cpu").level_statistics, bundle.pixels, images)
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
