"""The command line. The one file that may reach both service and training, each only when its command runs."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from model.errors import DdaebmError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=(
    "Adversarial energy-based diffusion: train, export and serve models that make images and score them."
))  # fmt: skip


@app.command()
def serve(
    bundle: Annotated[str | None, typer.Option(help="shipped bundle by name, or a bundle folder")] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on")] = None,
    port: Annotated[int | None, typer.Option(help="port to listen on")] = None,
    print_settings: Annotated[bool, typer.Option(help="list every setting with its value, and exit")] = False,
) -> None:
    """Serve a bundle over HTTP. Each setting is also an environment variable: DDAEBM_PORT and so on."""
    from pydantic import ValidationError

    from service.settings import Settings

    flags: dict[str, Any] = {"bundle": bundle, "host": host, "port": port}
    try:
        settings = Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"DDAEBM_{str(first['loc'][0]).upper()}: {first['msg']}") from error
    if print_settings:
        for name, field in Settings.model_fields.items():
            print(f"DDAEBM_{name.upper()}={getattr(settings, name)}  # {field.description or ''}".rstrip(" #"))
        return

    from service.app import create_app, load_engine
    from service.server import serve as run

    raise typer.Exit(run(create_app(settings, load_engine(settings)), settings))


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="debug, toy, toy-paper, fashion-mnist, cifar10, celeba64 or lsun_church128")
    ],
    out: Annotated[Path, typer.Option(help="run folder")],
    data: Annotated[str | None, typer.Option(help="folder of images, .npy, .npz or IDX file")] = None,
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    resume: Annotated[bool, typer.Option(help="go on from the newest checkpoint in --out")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    assignments: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE of any setting")] = None,
) -> None:
    """Train a recipe. Interrupted at any moment, --resume goes on as if it had not been."""
    from training import checkpoint
    from training.config import make_config
    from training.data import load_data, split
    from training.trainer import train as run

    overrides = dict(_assignment(text) for text in assignments or [])
    overrides |= {k: str(v) for k, v in {"data": data, "steps": steps, "seed": seed}.items() if v is not None}
    has_run = bool(checkpoint.list_checkpoints(out))
    if has_run and not resume:
        raise typer.BadParameter(f"{out} already holds a run; add --resume to go on with it, or give another --out")
    config = (checkpoint.read_config(out) if has_run else make_config(recipe)).override(overrides)
    if config.recipe != recipe:
        raise typer.BadParameter(f"{out} is a run of {config.recipe!r}, not of {recipe!r}")
    parts = split(load_data(config.data, config.network))
    state = run(config, parts.train, out, device)
    print(f"{out}: step {state.step}; next: ddaebm export {out} --out BUNDLE")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="run folder of `train`")],
    out: Annotated[Path, typer.Option(help="bundle folder to write")],
    name: Annotated[str | None, typer.Option(help="name that clients use; the recipe's by default")] = None,
    data: Annotated[str | None, typer.Option(help="the training data, if it has moved")] = None,
    test: Annotated[Path | None, typer.Option(help="test images, for the model card")] = None,
    ood: Annotated[list[str] | None, typer.Option(help="NAME=PATH of other images, for the model card")] = None,
) -> None:
    """Make a calibrated bundle of the newest checkpoint; refused where ONNX and torch disagree."""
    from training.export import export as make

    others = {label: Path(path) for label, path in (_assignment(text) for text in ood or [])}
    bundle, errors = make(run, out, name, data, test, others)
    for file, error in errors.items():
        print(f"{file}: relative error {error:.1e} against torch")
    print(f"{out}: bundle {bundle.name} {bundle.digest[:12]}; next: ddaebm serve --bundle {out}")


@app.command()
def evaluate(
    bundle: Annotated[str, typer.Argument(help="shipped bundle by name, or a bundle folder")],
    data: Annotated[Path, typer.Option(help="test images that were not trained on")],
    ood: Annotated[list[str] | None, typer.Option(help="NAME=PATH of other images")] = None,
) -> None:
    """False alarms and AUROC of a bundle's OOD score, as JSON."""
    from model.bundle import find_bundle, load_bundle
    from model.readers import read_images
    from model.runtime import BundleRuntime
    from training.evaluate import ood_report

    loaded = load_bundle(find_bundle(bundle))
    others = {label: read_images(Path(path), loaded.contract) for label, path in map(_assignment, ood or [])}
    test = read_images(data, loaded.contract)
    runtime = BundleRuntime(loaded)
    print(json.dumps(ood_report(runtime.energy, loaded.scorer, loaded.config.num_steps, test, others), indent=2))


@app.command()
def reproduce(
    figure: Annotated[str, typer.Argument(help="toy (Figure 1)")],
    out: Annotated[Path, typer.Option(help="folder for figure.png, metrics.json and the arrays behind them")],
    dataset: Annotated[str, typer.Option(help="25-gaussians, pinwheel or swiss-roll")] = "25-gaussians",
    recipe: Annotated[str, typer.Option(help="toy, or toy-paper for the paper's own settings")] = "toy",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="train steps; the recipe's by default")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Make a figure of the paper anew. Interrupted, the same command goes on where it stopped."""
    if figure != "toy":
        raise typer.BadParameter(f"no figure {figure!r}; there is toy")
    from training.reproduce import toy

    print(json.dumps(toy.reproduce(out, recipe, dataset, seed, steps, device), indent=2))


@app.command()
def sample(
    out: Annotated[Path, typer.Option(help="a .png grid, or an .npy of uint8 (n, h, w, c)")],
    n: Annotated[int, typer.Option("-n", min=1)] = 64,
    seed: Annotated[int, typer.Option(min=0, max=2**53 - 1)] = 0,
    bundle: Annotated[str, typer.Option(help="shipped bundle by name, or a bundle folder")] = "fashion-mnist",
) -> None:
    """Make images; the same seed gives the same ones as the service."""
    import numpy as np

    from model.bundle import find_bundle, load_bundle
    from model.files import encode_npy, write_file
    from model.images import encode_png, make_grid
    from model.noise import image_seeds
    from model.runtime import BundleRuntime

    if out.suffix not in (".png", ".npy"):
        raise typer.BadParameter("--out must end in .png or .npy")
    runtime = BundleRuntime(load_bundle(find_bundle(bundle)))
    seeds = image_seeds(seed, n)
    images = np.concatenate([runtime.sample(seeds[i : i + 64]) for i in range(0, n, 64)])
    write_file(out, encode_png(make_grid(images)) if out.suffix == ".png" else encode_npy(images))
    print(f"{out}: {n} images, seed {seed}")


@app.command()
def score(
    paths: Annotated[list[Path], typer.Argument(help="images, folders of images, .npy, .npz or IDX files")],
    bundle: Annotated[str, typer.Option(help="shipped bundle by name, or a bundle folder")] = "fashion-mnist",
    alpha: Annotated[float, typer.Option(help="false-alarm rate that is accepted")] = 0.05,
    fail_on_ood: Annotated[bool, typer.Option(help="exit with 3 when an image is out of distribution")] = False,
) -> None:
    """Score images: one JSON line each, with energies, OOD score, p-value and verdict."""
    from model.bundle import find_bundle, load_bundle
    from model.readers import read_images
    from model.runtime import BundleRuntime

    loaded = load_bundle(find_bundle(bundle))
    smallest = loaded.scorer.smallest_p
    if not smallest <= alpha < 1:
        raise typer.BadParameter(f"--alpha must lie in [{smallest:.3g}, 1): a smaller one can never fire")
    runtime = BundleRuntime(loaded)
    found = False
    for path in paths:
        images = read_images(path, loaded.contract)
        for start in range(0, len(images), 64):
            scores = runtime.score(images[start : start + 64])
            for i, (energies, ood_score, p_value) in enumerate(zip(*scores, strict=True)):
                is_ood = bool(p_value <= alpha)
                found |= is_ood
                row: dict[str, Any] = {"path": str(path), "index": start + i, "energies": energies.tolist(),
                                       "ood_score": ood_score, "p_value": p_value, "is_ood": is_ood}  # fmt: skip
                print(json.dumps(row))
    if found and fail_on_ood:
        raise typer.Exit(3)


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE")
    return name, value


def main() -> None:
    """Entry point: a known error is one line on stderr and exit code 1."""
    try:
        app()
    except (DdaebmError, OSError) as error:
        print(f"ddaebm: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
