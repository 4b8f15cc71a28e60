"""`sample` and `score`: any number of images, without a service."""

import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ddaebm.cli.options import BUNDLE, MAX_PIXELS, PATH
from ddaebm.model.errors import ConfigError


def sample(
    out: Annotated[Path, typer.Option(help=".png (a grid), .npy, .zip of PNGs, or a folder of PNGs")],
    n: Annotated[int, typer.Option("-n", min=1)] = 64,
    seed: Annotated[int, typer.Option(min=0, max=2**53 - 1)] = 0,
    bundle: Annotated[str, typer.Option(help=BUNDLE)] = "fashion-mnist",
) -> None:
    """Make any number of images. The same seed gives the same images as the service.

    If interrupted, the same command resumes where it stopped (.npy, .zip, folder).
    """
    from ddaebm.api import load
    from ddaebm.model.bulk import sample_to
    from ddaebm.model.progress import progress

    with load(bundle) as model, progress("sample", n) as tick:
        try:
            sample_to(model.engine, out, seed, n, tick)
        except ConfigError as error:
            raise typer.BadParameter(f"--out: {error}") from error
        except KeyboardInterrupt:
            print(f"{out}: stopped; the same command resumes", file=sys.stderr)
            raise typer.Exit(130) from None
    print(f"{out}: {n} images, seed {seed}")


class Format(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"


def score(
    paths: Annotated[list[str], typer.Argument(help=PATH)],
    bundle: Annotated[str, typer.Option(help=BUNDLE)] = "fashion-mnist",
    alpha: Annotated[float | None, typer.Option(help="false-alarm rate to accept; 0.05 by default")] = None,
    fdr: Annotated[
        float | None, typer.Option(help="select by false discovery rate (Benjamini and Hochberg) in place of alpha")
    ] = None,
    format_: Annotated[Format, typer.Option("--format", help="json: one object per line")] = Format.table,
    fail_on_ood: Annotated[bool, typer.Option(help="exit with code 3 if an image is out of distribution")] = False,
    heatmaps: Annotated[
        Path | None, typer.Option(help="folder for a PNG of each image, with its strange regions")
    ] = None,
    max_pixels: Annotated[int, typer.Option(min=1, help=MAX_PIXELS)] = 100_000_000,
) -> None:
    """Score any number of images: energies, OOD score, p-value, verdict. Exits with code 1 if one cannot be read."""
    from ddaebm.api import load
    from ddaebm.model.bulk import score_paths
    from ddaebm.model.pictures import open_folder, write_picture
    from ddaebm.model.progress import progress
    from ddaebm.model.tables import WRITERS, Totals, count, judge, select

    model = load(bundle)
    scorer = model.bundle.scorer
    smallest = scorer.smallest_p
    alpha = scorer.default_alpha if alpha is None else alpha
    for option, rate in (("--alpha", alpha), ("--fdr", smallest if fdr is None else fdr)):
        if not smallest <= rate < 1:
            images = model.calibration_size
            raise typer.BadParameter(
                f"{option} must lie in [{smallest:.3g}, 1): with {images} calibration images less can never fire"
            )
    if heatmaps is not None:
        open_folder(heatmaps)
    pictures = None if heatmaps is None else partial(write_picture, heatmaps)
    totals = Totals()
    with progress("score") as tick:
        rows = judge(score_paths(model.engine, paths, tick, max_pixels, pictures), alpha)
        WRITERS[format_](count(rows if fdr is None else select(rows, fdr), totals), sys.stdout)
    print(totals, file=sys.stderr)
    if totals.ood and fail_on_ood:
        raise typer.Exit(3)
    if totals.unreadable:
        raise typer.Exit(1)
