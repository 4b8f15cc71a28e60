"""Fit a gate for a user's own images: a new score and new p-values on the frozen networks of a bundle."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.bundle import Bundle, require_replaceable, rewrite_bundle
from ddaebm.model.errors import BundleError, DataError
from ddaebm.model.images.arrays import fingerprints
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.decode import bring
from ddaebm.model.images.encode import encode_png, make_grid
from ddaebm.model.manifest import WITHOUT_SPOTS, check_name
from ddaebm.model.noise import permutation
from ddaebm.model.ood.calibration import CrossFitted, LevelsOf, PlacesFit, calibrated, cross_fit, look, score_images
from ddaebm.model.ood.conformal import false_alarm_interval
from ddaebm.model.ood.dense import DEFAULT_PLACES_FORM, PLACES_FORMS, fit_basis
from ddaebm.model.ood.masks import colour_of, masked
from ddaebm.model.ood.power import (
    MOST,
    MOST_DENSE,
    SETS,
    Caught,
    judge,
    mean_auroc,
    painted,
    spread,
    table,
    worst_first,
)
from ddaebm.model.ood.scoring import FORMS
from ddaebm.model.progress import Tick, say_nothing
from ddaebm.model.recalibration import require_enough_for, require_unseen
from ddaebm.model.runtime import OnnxEngine, level_statistics

LEAST = 20  # images that a score can be fitted to; below that the covariance of a fold has next to no data
LEAST_TO_CHOOSE = 100  # fitted images from which on the form of the score is chosen
MARGIN = 0.005  # of mean AUROC; smaller differences between forms are noise
PREFERRED = "cross-validated ridge"  # better for few images; for thousands, which `export` has, the forms agree
FEW = 200  # images below which more would gain much
_MOST_BYTES = 2**30  # of energy maps in memory; beyond that, more images calibrate
_SHOWN = 64  # pixels along a side of an image in the model card, at most
_HEADING = "\n## Fitted to other images\n"


@dataclass(frozen=True)
class Gate:
    """The result of `fit`."""

    bundle: Bundle
    fitted: int  # number of images that the score was fitted to
    calibrated: int  # number of images that the p-values come from
    duplicates: int  # images that were left out: they have the same pixels as another one
    alpha: float
    caught: list[Caught]
    form: str  # the form of the score, of `model.ood.scoring.FORMS`; of a dense one, of `model.ood.dense.PLACES_FORMS`
    forms: Mapping[str, float]  # mean AUROC of each form that was compared, over the table
    side: int | None = None  # pixels along a side of an image that is scored densely

    def to_dict(self) -> dict[str, Any]:
        """The findings that the bundle keeps, for JSON."""
        low, high = false_alarm_interval(self.alpha, self.calibrated)
        return {
            "fitted": self.fitted, "calibrated": self.calibrated, "duplicates": self.duplicates,
            "alpha": self.alpha, "smallest_p": 1 / (self.calibrated + 1), "false_alarms": [low, high],
            "form": self.form, "forms": {form: round(mean, 4) for form, mean in self.forms.items()},
            "power": [row.to_dict() for row in self.caught],
        } | ({} if self.side is None else {"side": self.side})  # fmt: skip

    def __str__(self) -> str:
        return describe(self.to_dict(), table(self.caught, self.alpha))


def describe(about: Mapping[str, Any], rows: str) -> str:
    """The text that the command line and the model card show."""
    low, high = about["false_alarms"]
    few = f"Fewer than {FEW} images were fitted: more would raise what is caught.\n" if about["fitted"] < FEW else ""
    left_out = f"{about['duplicates']} duplicates were left out.\n" if about["duplicates"] else ""
    return (
        f"{about['fitted']} images fitted, {about['calibrated']} calibrate; the smallest p-value is"
        f" {about['smallest_p']:.2g}.\n{left_out}{few}{_of_forms(about)}"
        f"At alpha = {about['alpha']:g} the false-alarm rate is between {low:.2%} and {high:.2%} (99 % interval).\n\n"
        f"Your own images made faulty, and what this gate would catch of them, the worst first:\n\n{rows}"
    )


def _of_forms(about: Mapping[str, Any]) -> str:
    if len(about["forms"]) < 2:
        return ""
    means = ", ".join(f"{mean:.3f} with {form}" for form, mean in about["forms"].items())
    return f"The score has {about['form']}: its mean AUROC over the table below is {means}.\n"


def choose(forms: Mapping[str, float], preferred: str = PREFERRED) -> str:
    """The form with the highest mean AUROC; the preferred one unless another gains more than `MARGIN`."""
    best = max(forms, key=forms.__getitem__)
    return best if forms[best] > forms[preferred] + MARGIN else preferred


def work(count: int, hold_out: float, dense: bool) -> int:
    """Number of images that `fit` brings through the network, for progress."""
    fitted = round(count * (1 - hold_out))
    return count + SETS * len(spread(fitted, MOST_DENSE if dense else MOST))


def fit(
    bundle: Bundle,
    images: NDArray[np.uint8],
    out: Path,
    hold_out: float = 0.5,
    alpha: float = 0.05,
    name: str | None = None,
    seed: int = 0,
    tick: Tick = say_nothing,
    region: NDArray[np.float32] | None = None,
) -> Gate:
    """Fit and calibrate a score for other images than those that `bundle` was trained on, and write it to `out`.

    One part of the images, drawn at random, gives the p-values and is used for nothing else. The score is fitted to the
    rest. What it would catch is measured on images made faulty (`model/ood/faults.py`), each scored by a fit that left
    its original out. With `LEAST_TO_CHOOSE` fitted images or more this table also chooses the form of the score.

    Args:
        images: Ordinary images, uint8 (n, H, W, C), in the networks' own form; or larger, (n, N, N, C), to be scored
            densely, with or without an opacity as their last channel.
        hold_out: Share of the images for the p-values.
        alpha: The false-alarm rate that the table is for.
        name: Name of the new bundle; None keeps the name.
        seed: Draws the parts.
        region: Of images that are scored densely the pixels that count, (N, N), as `model.large.read_mask` reads them.

    Raises:
        ConfigError: A bundle cannot have this name.
        DataError: There are too few images, or some were used for training.
        BundleError: `out` holds something that is not a bundle or is the folder of `bundle`, or `bundle` is of an older
            format.
    """
    if out.resolve() == bundle.path.resolve():
        raise BundleError(f"{out} is the bundle to fit and would be overwritten; give another --out")
    if name is not None:
        check_name(name)
    require_replaceable(out)
    if not bundle.scorer.has_spots:
        raise BundleError(
            f"{bundle.path}: bundle format {WITHOUT_SPOTS} cannot be fitted; bring it forward with"
            " `ddaebm export BUNDLE --data TRAINING_IMAGES --out NEW`"
        )
    require_unseen(bundle, bring(colour_of(images), bundle.native))
    parts = _split(images, hold_out, seed, bundle.config.num_steps)
    require_enough_for(alpha, len(parts.held_out))
    engine = OnnxEngine(bundle, device="cpu")
    side = None if images.shape[1:] == bundle.native.shape else images.shape[1]
    levels_of, crosses, preferred = _candidates(engine, parts, seed, side, region, tick)
    most = MOST if side is None else MOST_DENSE
    powers = powers_of(levels_of, crosses, parts.fitted, alpha, seed, most, tick)
    forms = {form: mean_auroc(rows) for form, rows in powers.items()}
    cross = crosses[form := choose(forms, preferred)]
    fitted = calibrated(cross.fitted, score_images(levels_of, cross.fitted, parts.held_out, tick))
    counts = len(parts.fitted), len(parts.held_out), parts.duplicates
    gate = Gate(bundle, *counts, alpha, powers[form], form, forms, side)
    about = {**gate.to_dict(), "hold_out": hold_out, "seed": seed}
    sha256 = hashlib.sha256(parts.held_out.tobytes()).hexdigest()
    source = {"count": len(parts.held_out), "sha256": sha256, "replaces": bundle.digest}
    files = {"README.md": _card(bundle, gate, sha256).encode(), "faults.png": _pictures(parts.fitted, seed)}
    written = rewrite_bundle(bundle, out, name, fitted, source, files, about, side)
    return replace(gate, bundle=written)


def _candidates(
    engine: OnnxEngine, parts: "_Parts", seed: int, side: int | None, region: NDArray[np.float32] | None, tick: Tick
) -> tuple[LevelsOf, dict[str, CrossFitted], str]:
    """(the network's outputs for images, fits to compare by form, the preferred form).

    A dense score has the preferred form for the whole image, and those of `PLACES_FORMS` are compared.
    """
    choice, calibration = len(parts.fitted) >= LEAST_TO_CHOOSE, len(parts.held_out)
    if side is None:
        native = partial(level_statistics, engine.energy)  # `bundle` itself may score images densely
        levels = look(native, parts.fitted, tick)
        compared = tuple(FORMS) if choice else (PREFERRED,)
        crosses = {form: cross_fit(parts.fitted, levels, calibration, seed, form) for form in compared}
        return native, crosses, PREFERRED
    of_places = _places_in(region, side, engine.bundle.config.fold)

    def outputs_of(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        colour, counts = masked(images, of_places)
        return np.where(counts[:, None], engine.place_outputs(colour), np.nan)

    basis = fit_basis(outputs_of, parts.fitted)
    levels_of = partial(engine.look_closely, basis=basis, region=of_places)
    levels = look(levels_of, parts.fitted, tick)
    compared = tuple(PLACES_FORMS) if choice else (DEFAULT_PLACES_FORM,)
    crosses = {
        form: cross_fit(parts.fitted, levels, calibration, seed, PREFERRED, PlacesFit(basis, form, of_places))
        for form in compared
    }
    return levels_of, crosses, DEFAULT_PLACES_FORM


def _places_in(region: NDArray[np.float32] | None, side: int, fold: int) -> NDArray[np.float32]:
    """The places of which half or more counts, (h, w).

    Raises:
        DataError: There are none.
    """
    counts = np.ones((side, side), np.float32) if region is None else region
    places: NDArray[np.float32] = (counts.reshape(side // fold, fold, side // fold, fold).mean((1, 3)) >= 0.5).astype(
        np.float32
    )
    if not places.any():
        raise DataError(f"the mask has no place of {fold}x{fold} pixels that is white; give a larger white area")
    return places


@dataclass(frozen=True)
class _Parts:
    fitted: NDArray[np.uint8]
    held_out: NDArray[np.uint8]
    duplicates: int


def _split(images: NDArray[np.uint8], hold_out: float, seed: int, num_steps: int) -> _Parts:
    """Draw the images for the p-values. Only the first of equal images is used.

    A copy of a calibration image among the fitted ones would have its score lowered, as no new image has.
    """
    _, first = np.unique(fingerprints(images), return_index=True)
    order = np.sort(first)[permutation(len(first), seed)]
    pixels = images.shape[1] * images.shape[2]  # more than the float16 of a place's components, if scored densely
    most = max(LEAST, _MOST_BYTES // (4 * num_steps * pixels))
    held_out = max(round(len(order) * hold_out), len(order) - most)
    fitted = order[held_out:]
    if len(fitted) < LEAST:
        raise DataError(
            f"{len(fitted)} of {len(first)} different images are left to fit a score to, at least {LEAST} are needed;"
            " give more images, or a smaller --hold-out"
        )
    return _Parts(images[np.sort(fitted)], images[np.sort(order[:held_out])], len(images) - len(first))


def powers_of(
    levels_of: LevelsOf, crosses: Mapping[str, CrossFitted], images: NDArray[np.uint8], alpha: float, seed: int = 0,
    most: int = MOST, tick: Tick = say_nothing,
) -> dict[str, list[Caught]]:  # fmt: skip
    """Measure what each form catches of fitted images made faulty, each scored by the fit that left its original out.

    Args:
        crosses: Fits to `images` by form, with the same folds.
        most: Number of images that are made faulty.
    """
    shown = spread(len(images), most)
    rows: dict[str, list[Caught]] = {form: [] for form in crosses}
    for fault, severity, faulty in painted(images[shown], seed):
        levels = look(levels_of, faulty, tick)
        for form, cross in crosses.items():
            scores = np.empty(len(faulty))
            for number, without in enumerate(cross.without):
                mine = np.flatnonzero(cross.fold[shown] == number)
                if not len(mine):  # of few images a fold may have none
                    continue
                scores[mine] = without.score(faulty[mine], levels.take(mine)).ood_score
            threshold = float(np.quantile(cross.scores, 1 - alpha, method="higher"))
            rows[form].append(judge(fault, severity, scores, cross.scores, threshold))
    return {form: worst_first(found) for form, found in rows.items()}


def _pictures(images: NDArray[np.uint8], seed: int) -> bytes:
    """Eight ordinary images, then a row of them for each fault and severity, as PNG."""
    few = colour_of(images[spread(len(images))][:8])
    if few.shape[1] > _SHOWN:  # a whole one has megabytes
        few = bring(few, Contract(_SHOWN, _SHOWN, few.shape[3]))
    rows = [few, *(faulty for _, _, faulty in painted(few, seed))]
    return encode_png(make_grid(np.concatenate(rows), columns=len(few)))


def _card(bundle: Bundle, gate: Gate, sha256: str) -> str:
    lines = "\n".join(f"| {row.fault} | {row.severity} | {row.auroc:.3f} | {row.caught:.0%} |" for row in gate.caught)
    rows = f"| fault | severity | AUROC | caught at alpha = {gate.alpha:g} |\n|---|---|---|---|\n{lines}"
    order = ", ".join(f"{fault} ({severity})" for fault, severity, _ in painted(np.zeros((1, 8, 8, 1), np.uint8)))
    card = bundle.read("README.md").decode().partition(_HEADING)[0]
    return (
        card
        + _HEADING
        + (
            f"\n{describe(gate.to_dict(), rows)}\n\n![ordinary images, and the same made faulty](faults.png)\n\n"
            f"The first row is as it came; then {order}.\n\n"
            "The networks are those above. What is said above of false alarms, p-values and what is caught is of the"
            f" score before. The sha256 of the pixels of the calibration images is `{sha256}`.\n"
        )
    )
