"""`calibrate`: a gate for your own images from a bundle, without training."""

from pathlib import Path
from typing import Annotated

import typer

from ddaebm.cli.options import BUNDLE, MAX_PIXELS


def calibrate(
    bundle: Annotated[str, typer.Argument(help=BUNDLE)],
    data: Annotated[str, typer.Option(help="ordinary images of yours; none that the model was trained on")],
    out: Annotated[Path, typer.Option(help="bundle folder to write")],
    alpha: Annotated[float, typer.Option(help="false-alarm rate that you want to accept")] = 0.05,
    name: Annotated[str | None, typer.Option(help="name for clients; the old bundle's by default")] = None,
    max_pixels: Annotated[int, typer.Option(min=1, help=MAX_PIXELS)] = 100_000_000,
) -> None:
    """Calibrate a bundle's p-values on your own images, without training. Its energies and scores stay the same."""
    from ddaebm.model.bundle import find_bundle, load_bundle, require_replaceable
    from ddaebm.model.images.readers import read_images
    from ddaebm.model.manifest import check_name
    from ddaebm.model.ood.conformal import false_alarm_interval
    from ddaebm.model.recalibration import calibrate as make

    if not 1e-9 <= alpha < 1:
        raise typer.BadParameter("--alpha must lie between 0 and 1")
    require_replaceable(out)  # this and the name before the images are read
    if name is not None:
        check_name(name)
    old = load_bundle(find_bundle(bundle))
    images = read_images(data, old.contract, max_pixels)
    new, before = make(old, images, out, alpha, name)
    low, high = false_alarm_interval(alpha, len(images))
    threshold, former = new.scorer.threshold(alpha), old.scorer.threshold(alpha)
    print(f"p <= {alpha:g} above a score of {threshold:.1f}; before, above {former:.1f}")
    print(f"the old threshold would have flagged {before:.1%} of these {len(images)} images")
    print(f"the false-alarm rate of the new one is between {low:.2%} and {high:.2%} (99 % interval)")
    print(f"{out}: bundle {new.name} {new.digest[:12]}; next: ddaebm serve --bundle {out}")
