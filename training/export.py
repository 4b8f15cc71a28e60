"""A checkpoint's EMA networks -> a calibrated bundle: ONNX graphs, a parity gate, p-values, a model card."""

import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from model.bundle import Bundle, find_bundle, load_bundle, require_replaceable, write_bundle
from model.config import ModelConfig
from model.errors import CheckpointError, ParityError
from model.graphs import EnergyGraph, SamplerGraph
from model.images import encode_png, make_grid
from model.networks import EnergyNet, Generator
from model.noise import image_seeds
from model.readers import read_images
from model.runtime import Session, make_session, run_sampler
from model.sampling import Noise, draw_noise
from model.scoring import fit_scorer
from training import checkpoint
from training.card import model_card
from training.classifier import read_classifier
from training.config import TrainConfig
from training.data import MADE, contract, load_data, split
from training.evaluate import level_rows, ood_report
from training.quality import quality_report
from training.recipes import IMAGES, make_config
from training.step import TrainState, make_state

MAX_PARITY_ERROR = 1e-3


class Graph(NamedTuple):
    """One ONNX file: what to trace, and the names of what goes in and out."""

    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def make_graphs(config: ModelConfig, generator: Generator, energy_net: EnergyNet, batch: int) -> dict[str, Graph]:
    """The bundle's three graphs by file name, with random examples of `batch`."""
    noise = draw_noise(config, torch.arange(batch))
    channels, height, width = config.data_shape
    images = torch.randint(256, (batch, height, width, channels), dtype=torch.uint8)
    return {
        "sampler.onnx": Graph(SamplerGraph(generator, config), tuple(noise), Noise._fields, ("images",)),
        "generator.onnx": Graph(generator, (noise.x_T, noise.z[:, 0], torch.arange(batch) % config.num_steps),
                                ("x_tp1", "z", "k"), ("x0_hat",)),
        "energy.onnx": Graph(EnergyGraph(energy_net, config), (images,), ("images",),
                             ("energies", "energy_map", "features")),
    }  # fmt: skip


def to_onnx(graph: Graph) -> bytes:
    """Trace to ONNX with a free batch size."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            graph.module, graph.example, dynamo=True, verbose=False,
            input_names=list(graph.inputs), output_names=list(graph.outputs),
            dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in graph.example),
        )  # fmt: skip
    assert program is not None
    for node in program.model.graph:  # traces of source files say nothing to who loads the graph
        node.metadata_props.clear()
    program.model.graph.metadata_props.clear()
    contents: bytes = program.model_proto.SerializeToString()
    return contents


@torch.no_grad()
def parity(graph: Graph, session: Session) -> float:
    """Largest relative error ‖onnx - torch‖/‖torch‖ over the outputs, on the graph's example.

    A NaN on either side is infinite error.
    """
    expected = graph.module(*graph.example)
    expected = expected if isinstance(expected, tuple) else (expected,)
    feeds = {name: value.numpy() for name, value in zip(graph.inputs, graph.example, strict=True)}
    worst = 0.0
    for actual, wanted in zip(session.run(list(graph.outputs), feeds), expected, strict=True):
        error = relative_error(actual.astype(np.float64), wanted.double().numpy())
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def relative_error(actual: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(actual - wanted)) / max(float(np.linalg.norm(wanted)), 1e-12)


def require_parity(errors: Mapping[str, float]) -> None:
    """Raises ParityError where a graph is further than `MAX_PARITY_ERROR` from its network."""
    if bad := {name: error for name, error in errors.items() if not error <= MAX_PARITY_ERROR}:
        worst = ", ".join(f"{name} {error:.1e}" for name, error in bad.items())
        raise ParityError(f"not exported: relative error above {MAX_PARITY_ERROR:g} between ONNX and torch: {worst}")


def load_run(run: Path) -> tuple[TrainConfig, TrainState]:
    """Config and newest checkpoint of a run folder, on the CPU.

    Raises:
        CheckpointError: no checkpoint yet, or unreadable.
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
) -> tuple[Bundle, dict[str, float]]:
    """Make a calibrated bundle of the newest checkpoint of `run` in folder `out`.

    Args:
        data: where the training data is now, if it has moved.
        test: in-distribution images that were not trained on, and
        ood: other images by name; with both, the model card tells how well they are told apart.
        classifier: of the training data's classes; with `test`, the model card tells how near samples come to them.

    Returns:
        The bundle, read back, and the parity error of each graph.

    Raises:
        ParityError: a graph does not compute what its network computes; nothing is written.
        CheckpointError, DataError, BundleError: as they say.
    """
    require_replaceable(out)
    config, state = load_run(run)
    network = config.network
    if not network.is_image:
        raise CheckpointError(f"{run}: a model of points has no bundle; only images are served")
    splits = split(load_data(data or config.data, network))
    files, errors = make_files(config, state)
    energy = make_session(files["energy.onnx"])
    scorer = fit_scorer(level_rows(energy, splits.reference), level_rows(energy, splits.calibration))

    training = training_summary(config, state.step)
    digests = splits.digests()
    report = None
    if test:
        wanted = contract(network)
        others = {label: read_images(path, wanted) for label, path in (ood or {}).items()}
        images = read_images(test, wanted)
        report = ood_report(energy, scorer, network.num_steps, images, others)
        if classifier:
            sampler = make_session(files["sampler.onnx"])
            report["samples"] = quality_report(
                lambda seeds: run_sampler(sampler, network, seeds),
                *read_classifier(classifier),
                images,
                splits.held_out,
            )
    name = name or config.recipe
    card = model_card(name, train_command(config), training, digests, scorer, report)
    files["README.md"] = card.encode()
    bundle = write_bundle(out, name, network, contract(network), scorer, training, digests, files, report)
    return bundle, errors


@contextmanager
def open_model(source: str) -> Iterator[Bundle]:
    """The bundle that `source` names or, of a run folder, the one that it would export now.

    Raises:
        ParityError, CheckpointError, DataError, BundleError: as `export` and `model.bundle.load_bundle`.
    """
    if not Path(source, "checkpoints").is_dir():
        yield load_bundle(find_bundle(source))
        return
    with TemporaryDirectory() as folder:
        bundle, _ = export(Path(source), Path(folder) / "bundle")
        yield bundle


def make_files(config: TrainConfig, state: TrainState) -> tuple[dict[str, bytes], dict[str, float]]:
    """Graphs, weights and a picture of the EMA networks, and the parity error of each graph.

    Raises:
        ParityError: a graph does not compute what its network computes.
    """
    network = config.network
    nets = state.generator_ema, state.energy_net_ema
    for net in nets:
        net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # training's layout is no file's
    files = {file: to_onnx(graph) for file, graph in make_graphs(network, *nets, batch=3).items()}
    sessions = {file: make_session(contents) for file, contents in files.items()}
    # Another batch size than the traced one, or a size frozen by tracing would go unseen.
    errors = {file: parity(graph, sessions[file]) for file, graph in make_graphs(network, *nets, batch=5).items()}
    require_parity(errors)
    files["generator.safetensors"] = safetensors_bytes(state.generator_ema.state_dict())
    files["energy_net.safetensors"] = safetensors_bytes(state.energy_net_ema.state_dict())
    files["samples.png"] = encode_png(make_grid(run_sampler(sessions["sampler.onnx"], network, image_seeds(1, 64))))
    return files, errors


def training_summary(config: TrainConfig, step: int) -> dict[str, Any]:
    """What the manifest says of the training: every setting but the place of the data on a disk."""
    settings = {key: value for key, value in config.to_dict().items() if key not in ("network", "data")}
    return {**settings, "trained_steps": step, "torch": torch.__version__}


def train_command(config: TrainConfig) -> str:
    """The command that trains `config`: its recipe, and what of it was overridden."""
    form = contract(config.network) if config.recipe == IMAGES else None
    recipe = make_config(config.recipe, form).to_dict()
    changed = {key: value for key, value in config.to_dict().items() if value != recipe[key] and key != "data"}
    words = ["ddaebm train", config.recipe, "--data PATH" if config.data not in MADE else "", "--out RUN"]
    if form:
        words.append(f"--size {form.width}x{form.height} --channels {form.channels}")
    for key, value in changed.items():
        if isinstance(value, dict):
            words += [f"--set network.{k}={_word(v)}" for k, v in value.items() if v != recipe[key][k]]
        else:
            words.append(f"--set {key}={_word(value)}")
    return " ".join(word for word in words if word)


def _word(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))  # no spaces: it is one word of a shell
