"""The command line. The one file that may reach both service and training, each only when its command runs."""

import json
import os
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from model.errors import ConfigError, DdaebmError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=(
    "Adversarial energy-based diffusion: train, export and serve models that make images and score them."
))  # fmt: skip

_BUNDLE_HELP = "shipped bundle by name, or a bundle folder"
_CLASSIFIER_HELP = "shipped classifier by name, or a file of `classifier`, to measure samples by"
_PATH_HELP = "folder, .zip, .tar[.gz|.zst], .npy, .npz or IDX file of images, or hf:NAME[:split]"


@app.command()
def serve(
    bundle: Annotated[list[str] | None, typer.Option(help=f"{_BUNDLE_HELP}; again for more, chosen by `model`")] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on")] = None,
    port: Annotated[int | None, typer.Option(help="port to listen on")] = None,
    print_settings: Annotated[bool, typer.Option(help="list every setting with its value, and exit")] = False,
) -> None:
    """Serve bundles over HTTP; SIGHUP reloads them. Each setting is also in the environment: DDAEBM_PORT and so on."""
    from pydantic import ValidationError

    from service.settings import Settings

    flags: dict[str, Any] = {"bundle": bundle or None, "host": host, "port": port}
    try:
        settings = Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"DDAEBM_{str(first['loc'][0]).upper()}: {first['msg']}") from error
    for name in sorted(os.environ):
        if name.startswith("DDAEBM_") and name.removeprefix("DDAEBM_").lower() not in Settings.model_fields:
            print(f"ddaebm: {name} is no setting; see --print-settings", file=sys.stderr)
    if print_settings:
        for name, field in Settings.model_fields.items():
            value = getattr(settings, name)
            text = ",".join(value) if isinstance(value, tuple) else value
            print(f"DDAEBM_{name.upper()}={text}  # {field.description or ''}".rstrip(" #"))
        return

    from service.app import create_app, load_engines
    from service.server import serve as run

    raise typer.Exit(run(create_app(settings, *load_engines(settings).values()), settings))


@app.command()
def key() -> None:
    """Make an API key: one line for the client, one for the service, which never needs the key itself."""
    from service.auth import make_key

    secret, hashed = make_key()
    print(f"Authorization: Bearer {secret}\nDDAEBM_API_KEYS={hashed}")


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="images for your own; debug, toy, toy-paper, fashion-mnist, fashion-mnist-paper;"
            " cifar10, celeba64, lsun_church128"
        ),
    ],
    out: Annotated[Path, typer.Option(help="run folder")],
    data: Annotated[str | None, typer.Option(help=_PATH_HELP)] = None,
    size: Annotated[str | None, typer.Option(help="images: N or WIDTHxHEIGHT to resize to; the data's own")] = None,
    channels: Annotated[int | None, typer.Option(help="images: 1 grey or 3 colour; the data's own")] = None,
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    start: Annotated[str | None, typer.Option(help=f"begin with the weights of a bundle: {_BUNDLE_HELP}")] = None,
    resume: Annotated[bool, typer.Option(help="go on from the newest checkpoint in --out")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    assignments: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE of any setting")] = None,
) -> None:
    """Train a recipe. Interrupted at any moment, --resume goes on as if it had not been."""
    from model.bundle import find_bundle, load_bundle
    from model.readers import find_contract
    from training import checkpoint
    from training.data import describe, load_data, split
    from training.recipes import IMAGES, make_config
    from training.start import ENCODER_STEPS, begin
    from training.trainer import train as run

    overrides = dict(_assignment(text) for text in assignments or [])
    overrides |= {k: str(v) for k, v in {"data": data, "steps": steps, "seed": seed}.items() if v is not None}
    has_run = bool(checkpoint.list_checkpoints(out))
    if has_run and not resume:
        raise typer.BadParameter(f"{out} already holds a run; add --resume to go on with it, or give another --out")
    if recipe != IMAGES and (size or channels):
        raise typer.BadParameter(f"--size and --channels are for the recipe {IMAGES}; {recipe} has its own")
    if channels not in (None, 1, 3):
        raise typer.BadParameter(f"--channels is 1 (grey) or 3 (colour), not {channels}")
    form = None
    if recipe == IMAGES and not has_run:
        if not data:
            raise typer.BadParameter(f"the recipe {IMAGES} needs --data PATH")
        form = find_contract(data, _size(size), channels)
    start_bundle = load_bundle(find_bundle(start)) if start and not has_run else None
    if start_bundle:
        overrides = {"start": start_bundle.digest, "encoder_steps": str(ENCODER_STEPS), **overrides}
    config = (checkpoint.read_config(out) if has_run else make_config(recipe, form)).override(overrides)
    if config.recipe != recipe:
        raise typer.BadParameter(f"{out} is a run of {config.recipe!r}, not of {recipe!r}")
    parts = split(load_data(config.data, config.network))
    print(describe(config, parts), file=sys.stderr)
    if start_bundle:
        begin(out, start_bundle, config, parts)
    if resume:
        print(
            f"{out}: {'going on with the run in it' if has_run else 'no run in it yet, beginning at step 0'}",
            file=sys.stderr,
        )
    state = run(config, parts.train, out, device)
    if state.step < config.steps:
        print(f"{out}: stopped at step {state.step} of {config.steps}; the same command with --resume goes on")
        raise typer.Exit(130)
    print(f"{out}: step {state.step}; next: ddaebm export {out} --out BUNDLE")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="run folder of `train`")],
    out: Annotated[Path, typer.Option(help="bundle folder to write")],
    name: Annotated[str | None, typer.Option(help="name that clients use; the recipe's by default")] = None,
    data: Annotated[str | None, typer.Option(help="the training data, if it has moved")] = None,
    test: Annotated[str | None, typer.Option(help="test images, for the model card")] = None,
    ood: Annotated[list[str] | None, typer.Option(help="NAME=PATH of other images, for the model card")] = None,
    classifier: Annotated[str | None, typer.Option(help=f"{_CLASSIFIER_HELP}; for the model card")] = None,
) -> None:
    """Make a calibrated bundle of the newest checkpoint; refused where ONNX and torch disagree."""
    from training.export import export as make

    bundle, errors = make(run, out, name, data, test, dict(map(_assignment, ood or [])), classifier)
    for file, error in errors.items():
        print(f"{file}: relative error {error:.1e} against torch")
    print(f"{out}: bundle {bundle.name} {bundle.digest[:12]}; next: ddaebm serve --bundle {out}")


@app.command()
def classifier(
    data: Annotated[str, typer.Argument(help="the training data: CLASS/FILE, or IDX with its labels beside it")],
    out: Annotated[Path, typer.Option(help=".safetensors file to write")],
    epochs: Annotated[int, typer.Option(min=1)] = 8,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train the small classifier that `evaluate` and `export` measure samples by."""
    from model.readers import find_contract
    from training.classifier import train_classifier, write_classifier
    from training.labels import read_labelled

    def report(epoch: int, loss: float) -> None:
        print(f"epoch {epoch}/{epochs}  loss {loss:.4f}", file=sys.stderr)

    labelled = read_labelled(data, find_contract(data))
    trained, accuracy = train_classifier(labelled, epochs, seed, report)
    sha256 = write_classifier(out, trained)
    print(f"{out}: {len(labelled.classes)} classes, right on {accuracy:.4f} of the held-out images; sha256 {sha256}")


@app.command()
def evaluate(
    source: Annotated[str, typer.Argument(help=f"{_BUNDLE_HELP}, or a run folder")],
    data: Annotated[str, typer.Option(help="test images that were not trained on")],
    ood: Annotated[list[str] | None, typer.Option(help="NAME=PATH of other images")] = None,
    classifier: Annotated[str | None, typer.Option(help=f"{_CLASSIFIER_HELP}; needs --train")] = None,
    train: Annotated[str | None, typer.Option(help="the training data, whose held-out part is the floor")] = None,
    samples: Annotated[int, typer.Option("-n", min=2, help="samples to measure")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, max=2**53 - 1)] = 0,
) -> None:
    """False alarms and AUROC of the OOD score, and how near samples come to real images, as JSON."""
    from model.readers import read_images
    from model.runtime import BundleRuntime
    from training.classifier import read_classifier
    from training.data import split
    from training.evaluate import ood_report
    from training.export import open_model
    from training.quality import quality_report

    if (classifier is None) != (train is None):
        raise typer.BadParameter("--classifier and --train go together: samples are measured beside held-out images")
    with open_model(source) as loaded:
        others = {label: read_images(path, loaded.contract) for label, path in map(_assignment, ood or [])}
        test = read_images(data, loaded.contract)
        runtime = BundleRuntime(loaded)
        report = ood_report(runtime.energy, loaded.pixels, loaded.scorer, loaded.config.num_steps, test, others)
        if classifier and train:
            unseen = split(read_images(train, loaded.contract)).held_out
            report["samples"] = quality_report(
                runtime.sample, *read_classifier(classifier), test, unseen, samples, seed
            )
    print(json.dumps(report, indent=2))


@app.command()
def calibrate(
    bundle: Annotated[str, typer.Argument(help=_BUNDLE_HELP)],
    data: Annotated[str, typer.Option(help="images that the model will see while all is well, none of its training")],
    out: Annotated[Path, typer.Option(help="bundle folder to write")],
    alpha: Annotated[float, typer.Option(help="false-alarm rate that you mean to accept")] = 0.05,
    name: Annotated[str | None, typer.Option(help="name that clients use; the old one's by default")] = None,
) -> None:
    """Give a bundle the p-values of your own images, without training; what it computes stays the same."""
    from model.bundle import find_bundle, load_bundle
    from model.calibration import calibrate as make
    from model.readers import read_images
    from model.scoring import false_alarm_interval

    if not 1e-9 <= alpha < 1:
        raise typer.BadParameter("--alpha must lie between 0 and 1")
    old = load_bundle(find_bundle(bundle))
    images = read_images(data, old.contract)
    new, before = make(old, images, out, alpha, name)
    low, high = false_alarm_interval(alpha, len(images))
    threshold, former = new.scorer.threshold(alpha), old.scorer.threshold(alpha)
    print(f"p <= {alpha:g} above a score of {threshold:.1f}; before, above {former:.1f}")
    print(f"with the old one {before:.1%} of these {len(images)} images would have raised an alarm")
    print(f"with the new one the false-alarm rate lies between {low:.2%} and {high:.2%} (99 % interval)")
    print(f"{out}: bundle {new.name} {new.digest[:12]}; next: ddaebm serve --bundle {out}")


@app.command()
def reproduce(
    figure: Annotated[
        str, typer.Argument(help="toy, nice, samples, noise, steps (Figures 1 to 5) or ablations: docs/paper.md")
    ],
    out: Annotated[Path, typer.Option(help="folder for figure.png, metrics.json and the arrays behind them")],
    data: Annotated[str | None, typer.Option(help=f"real images: {_PATH_HELP}")] = None,
    bundle: Annotated[str | None, typer.Option(help=f"samples, noise: {_BUNDLE_HELP}")] = None,
    classifier: Annotated[str | None, typer.Option(help=_CLASSIFIER_HELP)] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="toy: 25-gaussians, pinwheel or swiss-roll; steps, ablations: 25-gaussians or fashion-mnist"),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="toy: toy, or toy-paper for the paper's own settings")] = None,
    size: Annotated[int | None, typer.Option(min=4, help="nice: side that images are brought to")] = None,
    images: Annotated[int | None, typer.Option(min=2, help="how many to measure")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="0")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="train steps; the figure's by default")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda")] = None,
) -> None:
    """Make a figure of the paper anew. Interrupted, the same command goes on where it stopped."""
    from training.reproduce import UsageError
    from training.reproduce import reproduce as make

    options = {"data": data, "bundle": bundle, "classifier": classifier, "dataset": dataset, "recipe": recipe,
               "size": size, "images": images, "seed": seed, "steps": steps, "device": device}  # fmt: skip
    try:
        metrics = make(figure, out, {name: value for name, value in options.items() if value is not None})
    except UsageError as error:
        raise typer.BadParameter(str(error)) from error
    except KeyboardInterrupt:
        print(f"{out}: stopped; the same command goes on where it did", file=sys.stderr)
        raise typer.Exit(130) from None
    print(json.dumps(metrics, indent=2))


@app.command()
def sample(
    out: Annotated[Path, typer.Option(help=".png (a grid), .npy, .zip of PNGs, or a folder of PNGs")],
    n: Annotated[int, typer.Option("-n", min=1)] = 64,
    seed: Annotated[int, typer.Option(min=0, max=2**53 - 1)] = 0,
    bundle: Annotated[str, typer.Option(help=_BUNDLE_HELP)] = "fashion-mnist",
) -> None:
    """Make images, any number; the same seed gives the same ones as the service.

    Interrupted, the same command goes on where it stopped (.npy, .zip, folder).
    """
    from model.bulk import sample_to
    from model.bundle import find_bundle, load_bundle
    from model.progress import progress
    from model.runtime import BundleRuntime

    runtime = BundleRuntime(load_bundle(find_bundle(bundle)))
    with progress("sample", n) as tick:
        try:
            sample_to(runtime, out, seed, n, tick)
        except ConfigError as error:
            raise typer.BadParameter(f"--out: {error}") from error
        except KeyboardInterrupt:
            print(f"{out}: stopped; the same command goes on where it did", file=sys.stderr)
            raise typer.Exit(130) from None
    print(f"{out}: {n} images, seed {seed}")


class Format(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"


@app.command()
def score(
    paths: Annotated[list[str], typer.Argument(help=_PATH_HELP)],
    bundle: Annotated[str, typer.Option(help=_BUNDLE_HELP)] = "fashion-mnist",
    alpha: Annotated[float | None, typer.Option(help="false-alarm rate that is accepted; 0.05 by default")] = None,
    fdr: Annotated[
        float | None, typer.Option(help="verdicts by the false discovery rate: so large a share of the ood ones is not")
    ] = None,
    format_: Annotated[Format, typer.Option("--format", help="json: one object a line")] = Format.table,
    fail_on_ood: Annotated[bool, typer.Option(help="exit with 3 when an image is out of distribution")] = False,
) -> None:
    """Score images, any number: energies, OOD score, p-value, verdict. Exits with 1 when one could not be read."""
    from model.bulk import score_paths
    from model.bundle import find_bundle, load_bundle
    from model.progress import progress
    from model.runtime import BundleRuntime
    from model.tables import WRITERS, Totals, count, judge, select

    loaded = load_bundle(find_bundle(bundle))
    smallest = loaded.scorer.smallest_p
    alpha = loaded.scorer.default_alpha if alpha is None else alpha
    for option, rate in (("--alpha", alpha), ("--fdr", smallest if fdr is None else fdr)):
        if not smallest <= rate < 1:
            images = len(loaded.scorer.calibration_scores)
            raise typer.BadParameter(
                f"{option} must lie in [{smallest:.3g}, 1): with {images} calibration images less can never fire"
            )
    totals = Totals()
    with progress("score") as tick:
        rows = judge(score_paths(BundleRuntime(loaded), paths, tick), alpha)
        WRITERS[format_](count(rows if fdr is None else select(rows, fdr), totals), sys.stdout)
    print(totals, file=sys.stderr)
    if totals.ood and fail_on_ood:
        raise typer.Exit(3)
    if totals.unreadable:
        raise typer.Exit(1)


def _size(text: str | None) -> tuple[int, int] | None:
    """N or WIDTHxHEIGHT -> (height, width)."""
    if text is None:
        return None
    sides = re.fullmatch(r"(\d+)(?:x(\d+))?", text.lower())
    if not sides:
        raise typer.BadParameter(f"--size is N or WIDTHxHEIGHT in pixels, not {text!r}")
    return int(sides[2] or sides[1]), int(sides[1])


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE")
    return name, value


def main() -> None:
    """Entry point: a known error is one line on stderr and exit code 1."""
    try:
        app()
    except BrokenPipeError:  # whoever read our output has enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:  # torch to train, say: what serves is installed without it
        if not error.name or error.name.partition(".")[0] in ("model", "service", "training"):
            raise
        install = "pip install -c constraints.txt -e '.[cpu,train]'"
        print(f"ddaebm: this needs {error.name}, which is not installed here; {install} has all of it", file=sys.stderr)
        raise SystemExit(1) from None
    except (DdaebmError, OSError) as error:
        print(f"ddaebm: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
