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
from onnx.external_data_helper import set_external_data
from torch import Tensor, nn

from ddaebm.model.config import ModelConfig
from ddaebm.model.errors import ParityError
from ddaebm.model.nets.graphs import EnergyGraph, SamplerGraph
from ddaebm.model.nets.networks import EnergyNet, Generator
from ddaebm.model.runtime import Session
from ddaebm.model.sampling import Noise, draw_noise

MAX_PARITY_ERROR = 1e-3  # relative


class Graph(NamedTuple):
    """What one ONNX file is made from: a module, example inputs, and the names of inputs and outputs."""

    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def make_graphs(config: ModelConfig, generator: Generator, energy_net: EnergyNet, batch: int) -> dict[str, Graph]:
    """Make the three graphs of a bundle by file name, with random example inputs of batch size `batch`."""
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


def to_onnx(graph: Graph, file: str, weights: bytes) -> bytes:
    """Trace a graph to ONNX with a dynamic batch size.

    Args:
        file: Name of the weights file.
        weights: Contents of the weights file, in safetensors format. Tensors that it contains are not stored in the
            graph. The graph refers to the file instead.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings from inside the exporter
        program = torch.onnx.export(
            graph.module, graph.example, dynamo=True, verbose=False,
            input_names=list(graph.inputs), output_names=list(graph.outputs),
            dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in graph.example),
        )  # fmt: skip
    assert program is not None
    for node in program.model.graph:  # source locations are of no use to readers of the graph
        node.metadata_props.clear()
    program.model.graph.metadata_props.clear()
    model = program.model_proto
    places = _places(weights)
    for tensor in model.graph.initializer:
        if place := places.get(tensor.raw_data):
            set_external_data(tensor, file, *place)
            tensor.ClearField("raw_data")
    contents: bytes = model.SerializeToString()
    return contents


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
