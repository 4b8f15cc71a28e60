"""Load the weights of a bundle into torch networks."""

import torch
from safetensors.torch import load
from torch import nn

from ddaebm.model.bundle import Bundle
from ddaebm.model.errors import BundleError
from ddaebm.model.nets.networks import EnergyNet, Generator

GENERATOR = "generator.safetensors"
ENERGY_NET = "energy_net.safetensors"


def load_weights(net: nn.Module, bundle: Bundle, file: str) -> None:
    """Copy the weights in `file` of `bundle` into `net`.

    Raises:
        BundleError: The file is missing, has changed, or holds weights of another network.
    """
    contents = bundle.read(file)
    try:
        net.load_state_dict(load(contents))
    except Exception as error:  # safetensors and torch have no error class in common
        reason = " ".join(str(error).split())  # torch lists one fault per line
        raise BundleError(
            f"{bundle.path / file}: not the weights of this bundle's networks ({reason}); export the bundle again"
        ) from error


def load_networks(bundle: Bundle, device: torch.device) -> tuple[Generator, EnergyNet]:
    """Build the generator and the energy network of `bundle` on `device`, in evaluation mode and without gradients.

    Raises:
        BundleError: As `load_weights`.
    """
    generator, energy_net = Generator(bundle.config), EnergyNet(bundle.config)
    load_weights(generator, bundle, GENERATOR)
    load_weights(energy_net, bundle, ENERGY_NET)
    return generator.to(device).eval().requires_grad_(False), energy_net.to(device).eval().requires_grad_(False)
