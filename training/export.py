"""Export the EMA networks of a checkpoint as a calibrated bundle with ONNX graphs, weights and a model card."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as safetensors_bytes

from ddaebm.model.bundle import WEIGHTS, Bundle, find_bundle, load_bundle, require_replaceable, write_bundle
from ddaebm.model.config import ModelConfig
from ddaebm.model.errors import CheckpointError
from ddaebm.model.files import encode_npy
from ddaebm.model.images.arrays import fingerprints
from ddaebm.model.images.encode import encode_png, make_grid
from ddaebm.model.images.readers import read_images
from ddaebm.model.manifest import check_name
from ddaebm.model.nets.networks import EnergyNet, Generator
from ddaebm.model.noise import image_seeds
from ddaebm.model.ood.calibration import fit
from ddaebm.model.runtime import level_statistics, run_sampler
from ddaebm.model.sessions import make_session
from ddaebm.training import checkpoint
from ddaebm.training.card import model_card
from ddaebm.training.classifier import read_classifier
from ddaebm.training.config import TrainConfig
from ddaebm.training.data import MADE, Splits, contract
from ddaebm.training.evaluate import ood_report, warn_of_trained
from ddaebm.training.quality import quality_report
from ddaebm.training.recipes import IMAGES, make_config
from ddaebm.training.record import recorded_parts
from ddaebm.training.start import seen_before
from ddaebm.training.step import TrainState, make_state
from ddaebm.training.to_onnx import make_graphs, parity, refer_to_weights, require_parity, sampler_onnx, to_onnx


def load_run(run: Path) -> tuple[TrainConfig, TrainState]:
    """Load the config and the newest checkpoint of a run folder, on the CPU.

    Raises:
        CheckpointError: There is no checkpoint yet, or it cannot be read.
    """
    config = checkpoint.read_config(run)
    found = checkpoint.list_checkpoints(run)
    if not found:
        raise CheckpointError(f"{run}: no checkpoint yet; train at least to step {config.checkpoint_every}")
    state = make_state(config)
    checkpoint.load(found[-1], state, config)
    state.generator_ema.eval()
    state.energy_net_ema.eval()
    return config, state


def export(
    run: Path,
    out: Path,
    name: str | None = None,
    data: str | None = None,
    test: str | None = None,
    ood: Mapping[str, str] | None = None,
    classifier: str | None = None,
    keep_parts: bool = False,
) -> tuple[Bundle, dict[str, float]]:
    """Export the newest checkpoint of `run` as a calibrated bundle in folder `out`.

    Args:
        name: Name of the bundle; the default is the name of the recipe.
        data: PATH of the training data, if it has moved since training.
        test: PATH of in-distribution test images. If given, the model card contains an evaluation.
        ood: PATHs of OOD images by name, for the evaluation.
        classifier: Path or name of a classifier. With `test`, the evaluation includes the quality of samples.
        keep_parts: If images were added to the data since the run began, leave them out in place of raising an error.

    Returns:
        The bundle, and the parity error of each graph.

    Raises:
        ConfigError: A bundle cannot have this name.
        ParityError: The outputs of a graph differ from those of its network. Nothing is written.
        CheckpointError: The run has no readable checkpoint, or is a model of points.
        DataError: Images or the classifier cannot be read, or the data is not that of the run.
        BundleError: `out` holds something that is not a bundle.
    """
    require_replaceable(out)
    config, state = load_run(run)
    name = check_name(name or config.recipe)
    network = config.network
    if not network.is_image:
        raise CheckpointError(f"{run}: a model of points cannot be exported; give the run of a model of images")
    splits = recorded_parts(run, config, data, keep_parts)
    seen = np.concatenate([fingerprints(splits.train), fingerprints(splits.reference), seen_before(run)])
    source = Source(
        name, network, state.generator_ema, state.energy_net_ema, splits, seen, training_summary(config, state.step),
        train_command(config),
    )  # fmt: skip
    return publish(out, source, Evaluation(test, ood or {}, classifier, config.max_pixels))


@dataclass(frozen=True)
class Source:
    """The networks, images and texts that make a bundle."""

    name: str
    network: ModelConfig
    generator: Generator
    energy_net: EnergyNet
    splits: Splits
    seen: NDArray[np.uint64]  # fingerprints of the images used for training or standardisation
    training: Mapping[str, Any]  # the training section of the manifest
    command: str  # that trains the networks


@dataclass(frozen=True)
class Evaluation:
    """The images that a bundle is evaluated on, as the arguments of `export`."""

    test: str | None
    ood: Mapping[str, str]
    classifier: str | None
    max_pixels: int


def publish(out: Path, source: Source, on: Evaluation) -> tuple[Bundle, dict[str, float]]:
    """Trace the networks, fit and calibrate the score, evaluate it, and write the bundle. Raises as `export`."""
    files, errors = make_files(source.network, source.generator, source.energy_net)
    levels_of = partial(level_statistics, make_session("energy.onnx", files))
    splits, form = source.splits, contract(source.network)
    fitted = fit(levels_of, splits.reference, splits.calibration)
    files["trained_on.npy"] = encode_npy(np.unique(source.seen))
    digests = splits.digests()
    report = None
    if on.test:
        images = read_images(on.test, form, on.max_pixels)
        warn_of_trained(on.test, images, source.seen)
        others = {label: read_images(path, form, on.max_pixels) for label, path in on.ood.items()}
        report = ood_report(levels_of, fitted, images, others)
        if on.classifier:
            sampler = make_session("sampler.onnx", files)
            judge, sha256 = read_classifier(on.classifier)
            report["samples"] = quality_report(
                partial(run_sampler, sampler, source.network), judge, sha256, images, splits.held_out
            )
    card = model_card(source.name, source.command, source.training, digests, fitted.scorer, report)
    files["README.md"] = card.encode()
    bundle = write_bundle(out, source.name, source.network, form, fitted, source.training, digests, files, report)
    return bundle, errors


@contextmanager
def open_model(source: str) -> Iterator[Bundle]:
    """Load the bundle named `source`; if `source` is a run folder, export it to a temporary bundle first.

    Raises:
        ParityError, CheckpointError, DataError: As `export`.
        BundleError: As `model.bundle.load_bundle`.
    """
    if not Path(source, "checkpoints").is_dir():
        yield load_bundle(find_bundle(source))
        return
    with TemporaryDirectory() as folder:
        bundle, _ = export(Path(source), Path(folder) / "bundle")
        yield bundle


def make_files(
    network: ModelConfig, generator: Generator, energy_net: EnergyNet
) -> tuple[dict[str, bytes], dict[str, float]]:
    """Encode the graphs and weights of the networks, and a grid of samples.

    Returns:
        Contents by file name, and the parity error of each graph.

    Raises:
        ParityError: The outputs of a graph differ from those of its network.
    """
    nets = generator, energy_net
    for net in nets:
        net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # training may use channels_last
    files = {
        "generator.safetensors": safetensors_bytes(generator.state_dict()),
        "energy_net.safetensors": safetensors_bytes(energy_net.state_dict()),
    }
    graphs = make_graphs(network, *nets, batch=3)
    traced = {file: to_onnx(graphs[file]) for file in ("generator.onnx", "energy.onnx", "places.onnx")}
    traced["sampler.onnx"] = sampler_onnx(network, traced["generator.onnx"])
    for file in WEIGHTS:
        files[file] = refer_to_weights(traced[file], WEIGHTS[file], files[WEIGHTS[file]])
    sessions = {file: make_session(file, files) for file in WEIGHTS}
    # Use another batch size than in tracing, to detect a batch size that tracing turned into a constant.
    errors = {file: parity(graph, sessions[file]) for file, graph in make_graphs(network, *nets, batch=5).items()}
    require_parity(errors)
    files["samples.png"] = encode_png(make_grid(run_sampler(sessions["sampler.onnx"], network, image_seeds(1, 64))))
    return files, errors


def training_summary(config: TrainConfig, step: int) -> dict[str, Any]:
    """The training section of the manifest: all settings except the local path of the data."""
    settings = {key: value for key, value in config.to_dict().items() if key not in ("network", "data")}
    return {**settings, "trained_steps": step, "torch": torch.__version__}


def train_command(config: TrainConfig) -> str:
    """The command line that trains `config`: its recipe and every setting that differs from it."""
    form = contract(config.network) if config.recipe == IMAGES else None
    recipe = make_config(config.recipe, form).to_dict()
    aside = ("data", "start")  # a local path, and a digest; the command has placeholders for them
    changed = {key: value for key, value in config.to_dict().items() if value != recipe[key] and key not in aside}
    words = ["ddaebm train", config.recipe, "--data PATH" if config.data not in MADE else "", "--out RUN"]
    words.append("--start BUNDLE" if config.start else "")
    if form:
        words.append(f"--size {form.width}x{form.height} --channels {form.channels}")
    for key, value in changed.items():
        if isinstance(value, dict):
            words += [f"--set network.{k}={_word(v)}" for k, v in value.items() if v != recipe[key][k]]
        else:
            words.append(f"--set {key}={_word(value)}")
    return " ".join(word for word in words if word)


def _word(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))  # without spaces, so that the shell reads one word
