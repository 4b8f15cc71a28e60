"""Recalibrate a bundle: new p-values from a user's own images. Networks and OOD scores stay the same."""

import hashlib
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.bundle import Bundle, require_replaceable, rewrite_bundle
from ddaebm.model.errors import BundleError, DataError
from ddaebm.model.images.arrays import fingerprints
from ddaebm.model.images.decode import bring
from ddaebm.model.manifest import check_name
from ddaebm.model.ood.calibration import calibrated, score_images
from ddaebm.model.ood.masks import colour_of
from ddaebm.model.ood.power import MOST, MOST_DENSE, Caught, power, spread
from ddaebm.model.progress import Tick, say_nothing
from ddaebm.model.runtime import OnnxEngine

_CARD_HEADING = "\n## Calibrated anew\n"


def calibrate(
    bundle: Bundle, images: NDArray[np.uint8], out: Path, alpha: float, name: str | None = None,
    tick: Tick = say_nothing,
) -> tuple[Bundle, float, list[Caught]]:  # fmt: skip
    """Write a copy of `bundle` to `out` whose p-values are calibrated on `images`.

    Args:
        images: In-distribution images, uint8 (n, H, W, C) in the contract's form. Training images are refused, because
            the model scores them lower than new images.
        alpha: The intended false-alarm rate, which determines how many images are needed.
        name: Name of the new bundle, for serving it beside the old one; None keeps the name.

    Returns:
        The new bundle, the share of `images` that the old calibration flags at `alpha`, and what the new one catches of
        them made faulty.

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
    require_enough_for(alpha, len(images))
    require_unseen(bundle, bring(colour_of(images), bundle.native))
    engine = OnnxEngine(bundle, device="cpu")
    scores = score_images(engine.level_statistics, bundle.fitted, images, tick)
    fitted = calibrated(bundle.fitted, scores)
    before = float((scores.p_value <= alpha).mean())
    shown = spread(len(images), MOST if bundle.side is None else MOST_DENSE)
    caught = power(
        images[shown], lambda faulty: score_images(engine.level_statistics, fitted, faulty, tick).ood_score,
        scores.ood_score, fitted.scorer.threshold(alpha),
    )  # fmt: skip
    scorer = fitted.scorer
    source = {"count": len(images), "sha256": hashlib.sha256(images.tobytes()).hexdigest(), "replaces": bundle.digest}
    card = bundle.read("README.md").decode().partition(_CARD_HEADING)[0]
    card += _CARD_HEADING + (
        f"\nThe p-values are those of {len(images)} other images (sha256 of the pixels `{source['sha256']}`).\n"
        f"The smallest possible one is {scorer.smallest_p:.2g}. What is said above of false alarms, of p-values and of"
        " what is caught is of the calibration before.\n"
    )
    return (
        rewrite_bundle(bundle, out, name, fitted, source, {"README.md": card.encode()}, side=bundle.side),
        before,
        caught,
    )


def require_enough_for(alpha: float, count: int) -> None:
    """Raise DataError if `count` calibration images cannot give a p-value of `alpha`."""
    needed = math.ceil(1 / alpha - 1 - 1e-9)
    if count < needed:
        raise DataError(
            f"{count} images cannot give a p-value of {alpha:g}; give at least {needed} images,"
            f" or {20 * needed} for a false-alarm rate near alpha"
        )


def require_unseen(bundle: Bundle, images: NDArray[np.uint8]) -> None:
    """Raise DataError if some images were used for training."""
    known = np.flatnonzero(np.isin(fingerprints(images), bundle.fingerprints()))
    if len(known):
        places = ", ".join(map(str, known[:5])) + (", …" if len(known) > 5 else "")
        raise DataError(
            f"{len(known)} of {len(images)} images were used for training (indices from 0: {places});"
            " leave them out, because p-values would not be valid"
        )
