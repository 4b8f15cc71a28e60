"""`reproduce`: the figures of the paper."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ddaebm.cli.options import BUNDLE, CLASSIFIER, PATH


def reproduce(
    figure: Annotated[
        str, typer.Argument(help="toy, nice, samples, noise, steps (Figures 1 to 5) or ablations: docs/paper.md")
    ],
    out: Annotated[Path, typer.Option(help="folder for figure.png, metrics.json and the arrays behind them")],
    data: Annotated[str | None, typer.Option(help=f"real images: {PATH}")] = None,
    bundle: Annotated[str | None, typer.Option(help=f"samples, noise: {BUNDLE}")] = None,
    classifier: Annotated[str | None, typer.Option(help=CLASSIFIER)] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="toy: 25-gaussians, pinwheel or swiss-roll; steps, ablations: 25-gaussians or fashion-mnist"),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="toy: toy, or toy-paper for the paper's own settings")] = None,
    size: Annotated[int | None, typer.Option(min=4, help="nice: side that images are resized to")] = None,
    images: Annotated[int | None, typer.Option(min=2, help="number of images to measure")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="0")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="train steps; the figure's by default")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda")] = None,
) -> None:
    """Reproduce a figure of the paper. If interrupted, the same command resumes where it stopped."""
    from ddaebm.training.reproduce import UsageError
    from ddaebm.training.reproduce import reproduce as make

    options = {"data": data, "bundle": bundle, "classifier": classifier, "dataset": dataset, "recipe": recipe,
               "size": size, "images": images, "seed": seed, "steps": steps, "device": device}  # fmt: skip
    try:
        metrics = make(figure, out, {name: value for name, value in options.items() if value is not None})
    except UsageError as error:
        raise typer.BadParameter(str(error)) from error
    except KeyboardInterrupt:
        print(f"{out}: stopped; the same command resumes", file=sys.stderr)
        raise typer.Exit(130) from None
    print(json.dumps(metrics, indent=2))
