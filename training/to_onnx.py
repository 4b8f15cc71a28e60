"""Convert networks to ONNX graphs, and check that each graph computes the same as its network."""

import json
import logging
import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto
from onnx.external_data_helper import set_external_data
from onnx.numpy_helper import from_array
from torch import Tensor, nn

from ddaebm.model.config import ModelConfig
from ddaebm.model.errors import ParityError
from ddaebm.model.nets.graphs import EnergyGraph, PlacesGraph, SamplerGraph, to_pixels
from ddaebm.model.nets.networks import EnergyNet, Generator
from ddaebm.model.sampling import Noise, draw_noise, sample
from ddaebm.model.schedule import make_schedule
from ddaebm.model.sessions import Session

MAX_PARITY_ERROR = 1e-3  # relative


class Graph(NamedTuple):
    """The source of one ONNX file: a module, example inputs, and the names of inputs and outputs."""

    module: nn.Module
    example: tuple[Any, ...]  # tensors, or lists of tensors
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    multiple: int | None = None  # height and width of the first input are free, in multiples of this


def make_graphs(config: ModelConfig, generator: Generator, energy_net: EnergyNet, batch: int) -> dict[str, Graph]:
    """Make the graphs of a bundle by file name, with random example inputs of batch size `batch`."""
    noise = draw_noise(config, torch.arange(batch))
    channels, height, width = config.data_shape
    images = torch.randint(256, (batch, height, width, channels), dtype=torch.uint8)
    places = PlacesGraph(energy_net, config)
    return {
        "sampler.onnx": Graph(SamplerGraph(generator, config), tuple(noise), Noise._fields, ("images",)),
        "generator.onnx": Graph(generator, (noise.x_T, noise.z[:, 0], torch.arange(batch) % config.num_steps),
                                ("x_tp1", "z", "k"), ("x0_hat",)),
        "energy.onnx": Graph(EnergyGraph(energy_net, config), (images,), ("images",),
                             ("energies", "energy_map", "features")),
        "places.onnx": Graph(places, (images,), ("images",), ("places",), places.fold),
    }  # fmt: skip


def to_onnx(graph: Graph) -> ModelProto:
    """Trace a graph to ONNX with a dynamic batch size, and with free sides where it has a `multiple`."""
    batch = {0: torch.export.Dim("batch")}
    if graph.multiple:
        batch |= {axis: graph.multiple * torch.export.Dim(name) for axis, name in ((1, "rows"), (2, "columns"))}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings from inside the exporter
        program = torch.onnx.export(
            graph.module, graph.example, dynamo=True, verbose=False,
            input_names=list(graph.inputs), output_names=list(graph.outputs),
            dynamic_shapes=tuple([batch] * len(each) if isinstance(each, list) else batch for each in graph.example),
        )  # fmt: skip
    assert program is not None
    for node in program.model.graph:  # source locations are of no use to readers of the graph
        node.metadata_props.clear()
    program.model.graph.metadata_props.clear()
    model: ModelProto = program.model_proto
    return model


def refer_to_weights(model: ModelProto, file: str, weights: bytes) -> bytes:
    """Encode a traced graph. Tensors that the weights file contains are not stored in it; it refers to the file.

    Args:
        file: Name of the weights file.
        weights: Contents of the weights file, in safetensors format.
    """
    places = _places(weights)
    for tensor in model.graph.initializer:
        if place := places.get(tensor.raw_data):
            set_external_data(tensor, file, *place)
            tensor.ClearField("raw_data")
    contents: bytes = model.SerializeToString()
    return contents


class _Loop(nn.Module):
    """The reverse process without its generator, whose outputs are arguments and whose inputs are returned."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.schedule = make_schedule(config)

    def forward(self, x_T: Tensor, z: Tensor, noise: Tensor, x0_hats: list[Tensor]) -> tuple[Tensor, ...]:
        """(images, x_tp1 and z of transition T-1, …, x_tp1 and z of transition 0)."""
        inputs: list[Tensor] = []

        def call(x_tp1: Tensor, z: Tensor, k: int) -> Tensor:
            inputs.extend((x_tp1.clone(), z))
            return x0_hats[k]

        return to_pixels(sample(call, self.schedule, Noise(x_T, z, noise))), *inputs


def sampler_onnx(config: ModelConfig, generator: ModelProto) -> ModelProto:
    """The graph of the whole reverse process: T copies of the traced generator in a traced loop.

    Tracing `SamplerGraph` itself gives the same graph in three times the time.
    """
    noise = draw_noise(config, torch.arange(3))
    steps = range(config.num_steps)
    named = tuple(f"{name}_{k}" for k in reversed(steps) for name in ("x_tp1", "z"))
    loop = to_onnx(Graph(_Loop(config).eval(), (*noise, [noise.x_T.clone() for _ in steps]),
                         (*Noise._fields, *(f"x0_hat_{k}" for k in steps)), ("images", *named)))  # fmt: skip
    graph, waiting = loop.graph, list(loop.graph.node)
    weights = {tensor.name for tensor in generator.graph.initializer}
    ends = {"x_tp1", "z", "x0_hat", "k"}
    for tensor in generator.graph.initializer:  # shared by all steps
        graph.initializer.append(tensor)
        graph.initializer[-1].name = f"generator.{tensor.name}"
    for k in steps:
        graph.initializer.append(from_array(np.array([k]), f"k_{k}"))

        def renamed(name: str, k: int = k) -> str:
            if not name:  # an optional input that is left out
                return name
            return f"generator.{name}" if name in weights else f"{name}_{k}" if name in ends else f"step_{k}.{name}"

        for node in generator.graph.node:
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.name = f"step_{k}.{node.name}"
            copy.input[:] = map(renamed, node.input)
            copy.output[:] = map(renamed, node.output)
            waiting.append(copy)
    keep_only(graph.input, Noise._fields)
    keep_only(graph.output, ("images",))
    del graph.node[:]
    known = {"", *Noise._fields, *(tensor.name for tensor in graph.initializer)}
    while waiting:  # in the order in which they can run; each pass reaches one more step
        left = []
        for node in waiting:
            if known.issuperset(node.input):
                graph.node.append(node)
                known.update(node.output)
            else:
                left.append(node)
        assert len(left) < len(waiting), "the graph has a cycle"
        waiting = left
    return loop


def keep_only(values: Any, names: tuple[str, ...]) -> None:
    """Remove inputs or outputs of a graph other than `names`."""
    for value in [value for value in values if value.name not in names]:
        values.remove(value)


def _places(weights: bytes) -> dict[bytes, tuple[int, int]]:
    """Locate the tensors of a safetensors file: tensor bytes -> (offset, length) in the file."""
    begin = 8 + int.from_bytes(weights[:8], "little")  # the header's length, the header as JSON, then the tensors
    header: dict[str, Any] = json.loads(weights[8:begin])
    spans = (tuple(begin + offset for offset in tensor["data_offsets"]) for tensor in header.values())
    return {weights[start:end]: (start, end - start) for start, end in spans}


@torch.no_grad()
def parity(graph: Graph, session: Session) -> float:
    """Largest relative error ‖onnx - torch‖/‖torch‖ over the outputs, for the example inputs of the graph.

    A NaN in either output counts as an infinite error.
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
    """‖actual - wanted‖/‖wanted‖."""
    return float(np.linalg.norm(actual - wanted)) / max(float(np.linalg.norm(wanted)), 1e-12)


def require_parity(errors: Mapping[str, float]) -> None:
    """Raise ParityError if the error of a graph is above `MAX_PARITY_ERROR`."""
    if bad := {name: error for name, error in errors.items() if not error <= MAX_PARITY_ERROR}:
        worst = ", ".join(f"{name} {error:.1e}" for name, error in bad.items())
        raise ParityError(f"not exported: relative error above {MAX_PARITY_ERROR:g} between ONNX and torch: {worst}")
