"""Bring a bundle of an older format forward: the same networks, traced and calibrated again on the same images."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from ddaebm.model.bundle import Bundle, require_replaceable
from ddaebm.model.errors import BundleError, DataError
from ddaebm.model.images.decode import MAX_PIXELS
from ddaebm.model.images.readers import read_images
from ddaebm.model.manifest import check_name
from ddaebm.model.nets.weights import load_networks
from ddaebm.training.data import split
from ddaebm.training.export import Evaluation, Source, publish


def renew(
    bundle: Bundle,
    out: Path,
    data: str,
    name: str | None = None,
    test: str | None = None,
    ood: Mapping[str, str] | None = None,
    classifier: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Bundle, dict[str, float]]:
    """Write a bundle of the present format with the networks of `bundle` to `out`.

    Args:
        data: PATH of the images that the networks were trained on: all of them, in the same order.
        name, test, ood, classifier: As `training.export.export`.

    Returns:
        The bundle, and the parity error of each graph.

    Raises:
        DataError: The images cannot be read, or are others.
        ParityError, BundleError: As `training.export.export`.
    """
    require_replaceable(out)
    if out.resolve() == bundle.path.resolve():
        raise BundleError(f"{out} is the bundle to bring forward and would be overwritten; give another --out")
    name = bundle.name if name is None else check_name(name)
    generator, energy_net = load_networks(bundle, torch.device("cpu"))
    splits = split(read_images(data, bundle.native, max_pixels))
    if splits.digests() != bundle.splits:
        raise DataError(f"{data}: not the images that {bundle.name} was trained on, in their order; give these")
    source = Source(
        name, bundle.config, generator, energy_net, splits, bundle.fingerprints(), bundle.training, _command(bundle)
    )
    return publish(out, source, Evaluation(test, ood or {}, classifier, max_pixels))


def _command(bundle: Bundle) -> str:
    """The command that trained the networks, from the model card."""
    found = re.search(r"^    (ddaebm train .*)$", bundle.read("README.md").decode(), re.MULTILINE)
    return found[1] if found else "(unknown)"
