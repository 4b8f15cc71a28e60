"""`train`, `export`, `classifier` and `evaluate`: from images to a bundle. They need the training extra."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ddaebm.cli.options import BUNDLE, CLASSIFIER, KEEP_PARTS, MAX_PIXELS, PATH, assignment, parse_size


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="images for your own; debug, toy, toy-paper, fashion-mnist, fashion-mnist-paper;"
            " cifar10, celeba64, lsun_church128"
        ),
    ],
    out: Annotated[Path, typer.Option(help="run folder")],
    data: Annotated[str | None, typer.Option(help=PATH)] = None,
    size: Annotated[str | None, typer.Option(help="images: N or WIDTHxHEIGHT to resize to; the data's own")] = None,
    channels: Annotated[int | None, typer.Option(help="images: 1 grey or 3 colour; the data's own")] = None,
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    start: Annotated[str | None, typer.Option(help=f"begin with the weights of a bundle: {BUNDLE}")] = None,
    resume: Annotated[bool, typer.Option(help="go on from the newest checkpoint in --out")] = False,
    keep_parts: Annotated[bool, typer.Option("--keep-parts", help=KEEP_PARTS)] = False,
    max_pixels: Annotated[int | None, typer.Option(min=1, help=f"{MAX_PIXELS}; 100,000,000 by default")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    assignments: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE of any setting")] = None,
) -> None:
    """Train a recipe. If it is interrupted, the same command with --resume continues without loss."""
    from ddaebm.training.reproduce import UsageError
    from ddaebm.training.run import prepare_run
    from ddaebm.training.trainer import train as run

    overrides = dict(assignment(text) for text in assignments or [])
    named = {"data": data, "steps": steps, "seed": seed, "max_pixels": max_pixels}
    overrides |= {name: str(value) for name, value in named.items() if value is not None}
    try:
        prepared = prepare_run(recipe, out, overrides, parse_size(size), channels, start, resume, keep_parts)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from error
    for message in prepared.messages:
        print(message, file=sys.stderr)
    state = run(prepared.config, prepared.train, out, device)
    if state.step < prepared.config.steps:
        print(f"{out}: stopped at step {state.step} of {prepared.config.steps}; the same command with --resume goes on")
        raise typer.Exit(130)
    print(f"{out}: step {state.step}; next: ddaebm export {out} --out BUNDLE")


def export(
    run: Annotated[Path, typer.Argument(help="run folder of `train`; or a bundle, to bring it to the present format")],
    out: Annotated[Path, typer.Option(help="bundle folder to write")],
    name: Annotated[str | None, typer.Option(help="name that clients use; the recipe's by default")] = None,
    data: Annotated[str | None, typer.Option(help="the training data, if it has moved; needed for a bundle")] = None,
    test: Annotated[str | None, typer.Option(help="test images, for the model card")] = None,
    ood: Annotated[list[str] | None, typer.Option(help="NAME=PATH of other images, for the model card")] = None,
    classifier: Annotated[str | None, typer.Option(help=f"{CLASSIFIER}; for the model card")] = None,
    keep_parts: Annotated[bool, typer.Option("--keep-parts", help=KEEP_PARTS)] = False,
) -> None:
    """Make a calibrated bundle of the newest checkpoint; refused where ONNX and torch disagree."""
    from ddaebm.model.bundle import MANIFEST, load_bundle
    from ddaebm.training.export import export as make
    from ddaebm.training.renew import renew

    others = dict(map(assignment, ood or []))
    if (run / MANIFEST).is_file():
        if data is None:
            raise typer.BadParameter("--data: give the images that the bundle was trained on")
        bundle, errors = renew(load_bundle(run), out, data, name, test, others, classifier)
    else:
        bundle, errors = make(run, out, name, data, test, others, classifier, keep_parts)
    for file, error in errors.items():
        print(f"{file}: relative error {error:.1e} against torch")
    print(f"{out}: bundle {bundle.name} {bundle.digest[:12]}; next: ddaebm serve --bundle {out}")


def classifier(
    data: Annotated[str, typer.Argument(help="the training data: CLASS/FILE, or IDX with its labels beside it")],
    out: Annotated[Path, typer.Option(help=".safetensors file to write")],
    epochs: Annotated[int, typer.Option(min=1)] = 8,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    max_pixels: Annotated[int, typer.Option(min=1, help=MAX_PIXELS)] = 100_000_000,
) -> None:
    """Train the small classifier that `evaluate` and `export` measure samples by."""
    from ddaebm.model.files import require_writable
    from ddaebm.model.images.readers import find_contract
    from ddaebm.training.classifier import train_classifier, write_classifier
    from ddaebm.training.labels import read_labelled

    def report(epoch: int, loss: float) -> None:
        print(f"epoch {epoch}/{epochs}  loss {loss:.4f}", file=sys.stderr)

    require_writable(out)
    labelled = read_labelled(data, find_contract(data, max_pixels=max_pixels), max_pixels)
    trained, accuracy = train_classifier(labelled, epochs, seed, report)
    sha256 = write_classifier(out, trained)
    print(f"{out}: {len(labelled.classes)} classes, right on {accuracy:.4f} of the held-out images; sha256 {sha256}")


def evaluate(
    source: Annotated[str, typer.Argument(help=f"{BUNDLE}, or a run folder")],
    data: Annotated[str, typer.Option(help="test images that were not trained on")],
    ood: Annotated[list[str] | None, typer.Option(help="NAME=PATH of other images")] = None,
    classifier: Annotated[str | None, typer.Option(help=f"{CLASSIFIER}; needs --train")] = None,
    train: Annotated[str | None, typer.Option(help="the training data, whose held-out part is the floor")] = None,
    samples: Annotated[int, typer.Option("-n", min=2, help="samples to measure")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, max=2**53 - 1)] = 0,
    max_pixels: Annotated[int, typer.Option(min=1, help=MAX_PIXELS)] = 100_000_000,
) -> None:
    """False alarms and AUROC of the OOD score, and how near samples come to real images, as JSON."""
    from ddaebm.model.images.readers import read_images
    from ddaebm.model.runtime import OnnxEngine
    from ddaebm.training.classifier import read_classifier
    from ddaebm.training.evaluate import known_parts, ood_report, warn_of_trained
    from ddaebm.training.export import open_model
    from ddaebm.training.quality import quality_report

    if (classifier is None) != (train is None):
        raise typer.BadParameter("--classifier and --train go together: samples are measured beside held-out images")
    with open_model(source) as loaded:
        others = {label: read_images(path, loaded.contract, max_pixels) for label, path in map(assignment, ood or [])}
        test = read_images(data, loaded.contract, max_pixels)
        warn_of_trained(data, test, loaded.fingerprints())
        runtime = OnnxEngine(loaded)
        report = ood_report(runtime.level_statistics, loaded.fitted, test, others)
        if classifier and train:
            unseen = known_parts(loaded, train, max_pixels).held_out
            report["samples"] = quality_report(
                runtime.sample, *read_classifier(classifier), test, unseen, samples, seed
            )
    print(json.dumps(report, indent=2))
