"""New p-values for a bundle from a user's own images; what it computes stays the same."""

import hashlib
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.bundle import Bundle, rewrite_bundle
from ddaebm.model.errors import BundleError, DataError
from ddaebm.model.images.arrays import fingerprints
from ddaebm.model.ood.calibration import level_rows
from ddaebm.model.ood.explain import fit_explainer
from ddaebm.model.ood.scoring import calibrate_scorer
from ddaebm.model.runtime import OnnxEngine

_CARD_HEADING = "\n## Calibrated anew\n"


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
