"""Weights of a bundle are loaded into networks, and wrong ones are refused in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from ddaebm.model.bundle import load_bundle
from ddaebm.model.errors import BundleError
from ddaebm.model.nets.networks import Generator
from ddaebm.model.nets.weights import ENERGY_NET, GENERATOR, load_networks, load_weights


def test_networks_have_the_weights_of_the_bundle_and_take_no_gradients(debug_bundle: Path) -> None:
    bundle = load_bundle(debug_bundle)
    for net, file in zip(load_networks(bundle, torch.device("cpu")), (GENERATOR, ENERGY_NET), strict=True):
        weights = load(bundle.read(file))
        for name, value in net.state_dict().items():
            assert torch.equal(value, weights[name]), name
        assert not net.training
        assert not any(parameter.requires_grad for parameter in net.parameters())


def test_weights_are_loaded_into_a_network_in_training(debug_bundle: Path) -> None:
    bundle = load_bundle(debug_bundle)
    generator = Generator(bundle.config)
    load_weights(generator, bundle, GENERATOR)
    assert generator.training
    assert all(parameter.requires_grad for parameter in generator.parameters())


def test_weights_of_other_networks_are_refused_in_one_line(debug_bundle: Path, forge: Callable[..., Path]) -> None:
    for contents in ((debug_bundle / ENERGY_NET).read_bytes(), b"no weights"):
        bundle = load_bundle(forge({GENERATOR: contents}))
        with pytest.raises(BundleError, match=r"generator\.safetensors: not the weights of this bundle") as raised:
            load_networks(bundle, torch.device("cpu"))
        assert "\n" not in str(raised.value)
