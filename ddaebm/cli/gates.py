"""`fit` and `calibrate`: a gate for your own images from a bundle, without training."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddaebm.cli.options import BUNDLE, MAX_PIXELS, PATH
from ddaebm.model.errors import ConfigError

if TYPE_CHECKING:
    from ddaebm.model.bundle import Bundle

_NAME = "name for clients; the old bundle's by default"
_SIDE = "bring images to this side in pixels and score them place by place; chosen from the images by default"
_UNKNOWN = 0.2  # share of images that the old threshold flags, above which `calibrate` advises to use `fit`


def fit(
    bundle: Annotated[str, typer.Argument(help=BUNDLE)],
    data: Annotated[str, typer.Option(help=f"ordinary images of yours: {PATH}")],
    out: Annotated[Path, typer.Option(help="bundle folder to write")],
    hold_out: Annotated[float, typer.Option(help="share of the images that gives the p-values")] = 0.5,
    alpha: Annotated[float, typer.Option(help="false-alarm rate that you want to accept")] = 0.05,
    name: Annotated[str | None, typer.Option(help=_NAME)] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**53 - 1, help="draws the part that gives the p-values")] = 0,
    side: Annotated[int | None, typer.Option(min=1, help=_SIDE)] = None,
    mask: Annotated[Path | None, typer.Option(help="image, white where pixels count; with --side")] = None,
    json_: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
    max_pixels: Annotated[int, typer.Option(min=1, help=MAX_PIXELS)] = 100_000_000,
) -> None:
    """Fit a gate for your own images, without training: a new score and p-values on the bundle's frozen networks.

    Tells what it would catch of your own images made faulty. Needs 40 images, and is better from 400 on.
    """
    from ddaebm.model.bundle import contract_at
    from ddaebm.model.fitting import fit as make
    from ddaebm.model.fitting import work
    from ddaebm.model.images.readers import read_images
    from ddaebm.model.large import read_region
    from ddaebm.model.progress import progress

    _check_rate("--alpha", alpha)
    _check_rate("--hold-out", hold_out)
    old = _open(bundle, out, name)
    try:
        dense = _side(old, data, side, max_pixels)
        region = read_region(mask, dense)
    except ConfigError as error:
        raise typer.BadParameter(f"--side: {error}") from error
    if dense is not None:
        _tell_cost(old, dense, chosen=side is None)
    images = read_images(data, contract_at(old.native, dense), max_pixels)
    with progress("fit", work(len(images), hold_out, dense is not None)) as tick:
        gate = make(old, images, out, hold_out, alpha, name, seed, tick, region)
    new = gate.bundle
    print(json.dumps({"name": new.name, "digest": new.digest, **gate.to_dict()}, indent=2) if json_ else gate)
    ending = f"{out}: bundle {new.name} {new.digest[:12]}; next: ddaebm serve --bundle {out}"
    print(ending if json_ else f"\n{ending}", file=sys.stderr if json_ else sys.stdout)  # stdout holds JSON alone


def calibrate(
    bundle: Annotated[str, typer.Argument(help=BUNDLE)],
    data: Annotated[str, typer.Option(help="ordinary images of yours; none that the model was trained on")],
    out: Annotated[Path, typer.Option(help="bundle folder to write")],
    alpha: Annotated[float, typer.Option(help="false-alarm rate that you want to accept")] = 0.05,
    name: Annotated[str | None, typer.Option(help=_NAME)] = None,
    max_pixels: Annotated[int, typer.Option(min=1, help=MAX_PIXELS)] = 100_000_000,
) -> None:
    """Calibrate a bundle's p-values on your own images, without training. Its energies and scores stay the same.

    For images of the same kind as before, such as those of another camera; for other images use `fit`.
    """
    from ddaebm.model.images.readers import read_images
    from ddaebm.model.ood.conformal import false_alarm_interval
    from ddaebm.model.ood.power import MOST, MOST_DENSE, SETS, spread, table
    from ddaebm.model.progress import progress
    from ddaebm.model.recalibration import calibrate as make

    _check_rate("--alpha", alpha)
    old = _open(bundle, out, name)
    images = read_images(data, old.contract, max_pixels)
    shown = spread(len(images), MOST if old.side is None else MOST_DENSE)
    with progress("calibrate", len(images) + SETS * len(shown)) as tick:
        new, before, caught = make(old, images, out, alpha, name, tick)
    low, high = false_alarm_interval(alpha, len(images))
    threshold, former = new.scorer.threshold(alpha), old.scorer.threshold(alpha)
    print(f"p <= {alpha:g} above a score of {threshold:.1f}; before, above {former:.1f}")
    print(f"the old threshold would have flagged {before:.1%} of these {len(images)} images")
    print(f"the false-alarm rate of the new one is between {low:.2%} and {high:.2%} (99 % interval)\n")
    print(f"Your own images made faulty, and what is caught of them, the worst first:\n\n{table(caught, alpha)}\n")
    if before > _UNKNOWN:
        print(f"The score does not know such images: use `ddaebm fit {bundle} --data {data} --out {out}`.\n")
    print(f"{out}: bundle {new.name} {new.digest[:12]}; next: ddaebm serve --bundle {out}")


def _check_rate(option: str, rate: float) -> None:
    if not 1e-9 <= rate < 1:
        raise typer.BadParameter(f"{option} must lie between 0 and 1")


def _open(bundle: str, out: Path, name: str | None) -> "Bundle":
    """Check where the result goes, and only then read the bundle."""
    from ddaebm.model.bundle import find_bundle, load_bundle, require_replaceable
    from ddaebm.model.manifest import check_name

    require_replaceable(out)
    if name is not None:
        check_name(name)
    return load_bundle(find_bundle(bundle))


def _side(bundle: "Bundle", data: str, wanted: int | None, max_pixels: int) -> int | None:
    """The side at which images are scored densely, or None."""
    from ddaebm.model.images.readers import entries
    from ddaebm.model.large import choose_side, require_side

    if wanted is None:
        return choose_side(bundle, entries(data, bundle.native.channels, tell=False), max_pixels)
    return require_side(bundle, wanted)


def _tell_cost(bundle: "Bundle", side: int, chosen: bool) -> None:
    """Print the time of an image at this side, and at half of it."""
    from ddaebm.model.large import seconds_each
    from ddaebm.model.runtime import OnnxEngine

    engine, fold = OnnxEngine(bundle, device="cpu"), bundle.config.fold
    half = max(side // 2 // fold, 1) * fold
    why = ", chosen from the images" if chosen else ""
    print(
        f"--side {side}{why}: about {seconds_each(engine, side):.3f} s an image on this machine;"
        f" --side {half}: {seconds_each(engine, half):.3f} s",
        file=sys.stderr,
    )
