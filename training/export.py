"""A checkpoint's EMA networks -> a calibrated bundle: ONNX graphs, their weights, p-values, a model card."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as safetensors_bytes

from ddaebm.model.bundle import WEIGHTS, Bundle, find_bundle, load_bundle, require_replaceable, write_bundle
from ddaebm.model.errors import CheckpointError
from ddaebm.model.files import encode_npy
from ddaebm.model.images.arrays import fingerprints
from ddaebm.model.images.encode import encode_png, make_grid
from ddaebm.model.images.readers import read_images
from ddaebm.model.noise import image_seeds
from ddaebm.model.ood.calibration import fit
from ddaebm.model.runtime import level_statistics, make_session, run_sampler
from ddaebm.training import checkpoint
from ddaebm.training.card import model_card
from ddaebm.training.classifier import read_classifier
from ddaebm.training.config import TrainConfig
from ddaebm.training.data import MADE, contract, load_data, split
from ddaebm.training.evaluate import ood_report
from ddaebm.training.quality import quality_report
from ddaebm.training.recipes import IMAGES, make_config
from ddaebm.training.start import seen_before
from ddaebm.training.step import TrainState, make_state
from ddaebm.training.to_onnx import make_graphs, parity, require_parity, to_onnx


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
    levels_of = partial(level_statistics, make_session("energy.onnx", files))
    pixels, scorer, explainer = fit(levels_of, splits.reference, splits.calibration)
    seen = np.concatenate([fingerprints(splits.train), fingerprints(splits.reference), seen_before(run)])
    files["trained_on.npy"] = encode_npy(np.unique(seen))

    training = training_summary(config, state.step)
    digests = splits.digests()
    report = None
    if test:
        wanted = contract(network)
        others = {label: read_images(path, wanted) for label, path in (ood or {}).items()}
        images = read_images(test, wanted)
        report = ood_report(levels_of, pixels, scorer, network.num_steps, images, others)
        if classifier:
            sampler = make_session("sampler.onnx", files)
            report["samples"] = quality_report(
                lambda seeds: run_sampler(sampler, network, seeds),
                *read_classifier(classifier),
                images,
                splits.held_out,
            )
    name = name or config.recipe
    card = model_card(name, train_command(config), training, digests, scorer, report)
    files["README.md"] = card.encode()
    bundle = write_bundle(
        out, name, network, contract(network), pixels, scorer, explainer, training, digests, files, report
    )
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
    files = {
        "generator.safetensors": safetensors_bytes(state.generator_ema.state_dict()),
        "energy_net.safetensors": safetensors_bytes(state.energy_net_ema.state_dict()),
    }
    for file, graph in make_graphs(network, *nets, batch=3).items():
        files[file] = to_onnx(graph, WEIGHTS[file], files[WEIGHTS[file]])
    sessions = {file: make_session(file, files) for file in WEIGHTS}
    # Another batch size than the traced one, or a size frozen by tracing would go unseen.
    errors = {file: parity(graph, sessions[file]) for file, graph in make_graphs(network, *nets, batch=5).items()}
    require_parity(errors)
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
    aside = ("data", "start")  # a path, and a digest
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
    return json.dumps(value, separators=(",", ":"))  # no spaces: it is one word of a shell
