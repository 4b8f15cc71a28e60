"""Export: the graphs equal the networks, and no path of this machine gets into the bundle."""

import math
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes

import ddaebm
from ddaebm.model.bundle import WEIGHTS, load_bundle
from ddaebm.model.errors import CheckpointError, ParityError
from ddaebm.model.images.arrays import fingerprints
from ddaebm.model.nets.networks import Generator
from ddaebm.model.sessions import Session, make_session
from ddaebm.training import checkpoint
from ddaebm.training.data import load_data, split
from ddaebm.training.export import export, load_run, make_files, train_command
from ddaebm.training.recipes import make_config
from ddaebm.training.step import make_state
from ddaebm.training.to_onnx import (
    MAX_PARITY_ERROR,
    make_graphs,
    parity,
    refer_to_weights,
    relative_error,
    require_parity,
    to_onnx,
)


def open_graph(bundle: Path, name: str) -> Session:
    return make_session(name, {file: (bundle / file).read_bytes() for file in (name, WEIGHTS[name])})


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("name", WEIGHTS)
def test_graphs_compute_what_the_networks_do_at_any_batch_size(
    debug_bundle: Path, debug_run: Path, name: str, batch: int
) -> None:
    config, state = load_run(debug_run)
    graph = make_graphs(config.network, state.generator_ema, state.energy_net_ema, batch)[name]
    assert parity(graph, open_graph(debug_bundle, name)) < MAX_PARITY_ERROR / 10


def test_graphs_of_the_papers_layers_compute_what_they_do_and_each_row_alone() -> None:
    layers = {"network.attention": "8", "network.resample": "fir", "network.pyramid": "true"}
    config = make_config("debug").override({**layers, "network.num_steps": "1"})  # a step repeats the same layers
    state = make_state(config)
    nets = state.generator_ema, state.energy_net_ema
    torch.manual_seed(0)
    for parameter in [
        p for net in nets for p in net.parameters()
    ]:  # layers initialised to zero would hide the layers before them
        parameter.add_(0.1 * torch.randn_like(parameter))
    for net in nets:
        net.to(memory_format=torch.contiguous_format)
    files = {
        "generator.safetensors": safetensors_bytes(nets[0].state_dict()),
        "energy_net.safetensors": safetensors_bytes(nets[1].state_dict()),
    }
    traced = make_graphs(config.network, *nets, batch=3)
    for name, graph in make_graphs(config.network, *nets, batch=4).items():
        if name == "sampler.onnx":  # the generator's layers again
            continue
        files[name] = refer_to_weights(to_onnx(traced[name]), WEIGHTS[name], files[WEIGHTS[name]])
        session, outputs = make_session(name, files), list(graph.outputs)
        assert parity(graph, session) < MAX_PARITY_ERROR / 10
        feeds = {key: value.numpy() for key, value in zip(graph.inputs, graph.example, strict=True)}
        whole = session.run(outputs, feeds)
        for i in range(4):
            alone = session.run(outputs, {key: value[i : i + 1] for key, value in feeds.items()})
            for a, b in zip(alone, whole, strict=True):
                np.testing.assert_array_equal(a[0], b[i], err_msg=f"{name}, row {i}")


@pytest.mark.parametrize("name", WEIGHTS)
def test_parity_sees_another_network(debug_bundle: Path, debug_run: Path, name: str) -> None:
    config, _ = load_run(debug_run)
    other = make_state(config)
    graph = make_graphs(config.network, other.generator_ema, other.energy_net_ema, 6)[name]
    error = parity(graph, open_graph(debug_bundle, name))
    with pytest.raises(ParityError, match=name):
        require_parity({name: error})


def test_nan_is_infinite_error(debug_bundle: Path, debug_run: Path) -> None:
    config, state = load_run(debug_run)
    with torch.no_grad():
        next(state.generator_ema.parameters()).fill_(math.nan)
    graph = make_graphs(config.network, state.generator_ema, state.energy_net_ema, 2)["generator.onnx"]
    assert parity(graph, open_graph(debug_bundle, "generator.onnx")) == math.inf


def test_relative_error() -> None:
    assert relative_error(np.array([3.0, 4.4]), np.array([3.0, 4.0])) == pytest.approx(0.08)
    assert relative_error(np.zeros(2), np.zeros(2)) == 0


@pytest.mark.parametrize("error", [MAX_PARITY_ERROR * 1.01, math.inf, math.nan])
def test_too_large_an_error_is_named(error: float) -> None:
    require_parity({"a.onnx": 0.0, "b.onnx": MAX_PARITY_ERROR})
    with pytest.raises(ParityError, match=r"b\.onnx") as caught:
        require_parity({"a.onnx": 0.0, "b.onnx": error})
    assert "a.onnx" not in str(caught.value)


def test_bundle_holds_the_averaged_networks(debug_bundle: Path, debug_run: Path) -> None:
    config, state = load_run(debug_run)
    assert state.step == config.steps
    for name in ("generator", "energy_net"):
        averaged = getattr(state, f"{name}_ema").state_dict()
        torch.testing.assert_close(load_file(debug_bundle / f"{name}.safetensors"), averaged, rtol=0, atol=0)
    assert not torch.equal(*(next(g.parameters()) for g in (state.generator_ema, state.networks.generator)))


def test_a_bundle_has_each_weight_once(debug_bundle: Path) -> None:
    for name, file in WEIGHTS.items():
        graph = onnx.load(debug_bundle / name, load_external_data=False).graph
        inside = [tensor for tensor in graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
        assert all(math.prod(tensor.dims) < 200 for tensor in inside), "shapes, steps and the like"
        outside = {e.value for tensor in graph.initializer for e in tensor.external_data if e.key == "location"}
        assert outside == {file}


def test_a_graph_can_be_opened_where_it_lies(debug_bundle: Path) -> None:
    from_file = Session(debug_bundle / "energy.onnx", providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1), dtype=np.uint8)
    ours = open_graph(debug_bundle, "energy.onnx")
    for a, b in zip(from_file.run(None, {"images": images}), ours.run(None, {"images": images}), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_bundle_knows_what_it_was_trained_on_and_not_the_rest(debug_bundle: Path) -> None:
    bundle = load_bundle(debug_bundle)
    splits = split(load_data("shapes", bundle.config))
    parts = (splits.train, splits.reference, splits.choice, splits.calibration)
    known = [float(np.isin(fingerprints(part), bundle.fingerprints()).mean()) for part in parts]
    assert known[:2] == [1, 1]
    assert max(known[2:]) < 0.03  # the synthetic shapes contain a few duplicates


def test_weights_and_manifest_rebuild_the_generator(debug_bundle: Path) -> None:
    generator = Generator(load_bundle(debug_bundle).config)
    generator.load_state_dict(load_file(debug_bundle / "generator.safetensors"))


def test_manifest_says_how_it_was_trained_and_on_what(debug_bundle: Path, debug_run: Path) -> None:
    bundle, config = load_bundle(debug_bundle), checkpoint.read_config(debug_run)
    assert bundle.name == "debug"
    assert bundle.config == config.network
    assert bundle.training["trained_steps"] == config.steps
    assert bundle.training["gamma"] == config.gamma
    splits = split(load_data("shapes", config.network))
    assert bundle.splits == splits.digests()
    assert len(bundle.scorer.calibration_scores) == len(splits.calibration)
    assert "debug" in (debug_bundle / "README.md").read_text()


def test_bundle_says_nothing_of_the_machine_that_made_it(debug_bundle: Path, debug_run: Path) -> None:
    source = str(Path(ddaebm.__file__).parents[1])
    for file in debug_bundle.iterdir():
        contents = file.read_bytes()
        for place in (source, sys.prefix, sys.base_prefix, str(debug_run.parent), "site-packages", "stack_trace"):
            assert place.encode() not in contents, file.name
        assert not re.search(rb"/\w+\.py\b", contents), file.name


@pytest.mark.parametrize(
    "settings",
    [{}, {"steps": "7", "gamma": "0.001", "gradient_penalty": "conditional"},
     {"adam_betas": "0.5,0.9", "network.widths": "8,8", "network.latent_dim": "4"}],
    ids=["recipe", "scalars", "lists"],
)  # fmt: skip
def test_the_command_on_the_card_trains_the_same_config(settings: dict[str, str]) -> None:
    config = make_config("debug").override(settings)
    words = shlex.split(train_command(config))
    assert words[:5] == ["ddaebm", "train", "debug", "--out", "RUN"]
    flags, values = words[5::2], words[6::2]
    assert set(flags) <= {"--set"}
    assert make_config("debug").override(dict(value.split("=", 1) for value in values)) == config


def test_the_command_leaves_the_place_of_the_data_open() -> None:
    config = make_config("fashion-mnist").override({"data": "some/private/folder"})
    assert train_command(config) == "ddaebm train fashion-mnist --data PATH --out RUN"


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint.write_config(tmp_path / "run", make_config("debug"))
    with pytest.raises(CheckpointError, match="no checkpoint yet; train at least to step 20"):
        export(tmp_path / "run", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no readable config\.json"):
        export(tmp_path, tmp_path / "bundle")


def test_a_run_of_points_is_refused(tmp_path: Path) -> None:
    config = make_config("toy")
    checkpoint.write_config(tmp_path / "run", config)
    checkpoint.save(tmp_path / "run", make_state(config), config)
    with pytest.raises(CheckpointError, match="a model of points cannot be exported"):
        export(tmp_path / "run", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_graphs_are_checked_at_another_batch_size_than_they_were_traced_at(
    debug_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tracing can turn a batch size into a constant, which only another one shows."""
    traced, checked = set[int](), set[int]()
    module = "ddaebm.training.export"
    monkeypatch.setattr(f"{module}.to_onnx", lambda graph: traced.add(len(graph.example[0])))
    monkeypatch.setattr(f"{module}.sampler_onnx", lambda *args: None)
    monkeypatch.setattr(f"{module}.refer_to_weights", lambda *args: b"")
    monkeypatch.setattr(f"{module}.parity", lambda graph, session: checked.add(len(graph.example[0])) or 0.0)
    monkeypatch.setattr(f"{module}.make_session", lambda *args: None)
    monkeypatch.setattr(f"{module}.run_sampler", lambda *args: np.zeros((64, 16, 16, 1), np.uint8))
    config, state = load_run(debug_run)
    make_files(config.network, state.generator_ema, state.energy_net_ema)
    assert traced
    assert checked
    assert not traced & checked
