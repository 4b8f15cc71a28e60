"""Begin a run with the weights of a bundle, on its own images or others: fine-tuning."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load

from ddaebm.model.bundle import Bundle
from ddaebm.model.errors import ConfigError, DataError
from ddaebm.model.files import write_file
from ddaebm.model.images.arrays import fingerprints
from ddaebm.training import checkpoint
from ddaebm.training.config import TrainConfig
from ddaebm.training.data import Splits
from ddaebm.training.step import make_state

ENCODER_STEPS = 500  # the encoder is not in a bundle: until it has caught up it would teach the generator to ignore z
TRAINED_ON = "trained_on.npy"  # in the run folder: what the bundle's networks had seen before


def begin(run: Path, bundle: Bundle, config: TrainConfig, parts: Splits) -> None:
    """Write step 0 of `run`: generator and energy network, and their averages, are the bundle's averages.

    Raises:
        ConfigError: the bundle's networks are not those of `config`.
        DataError: its networks have seen images that are held out now to calibrate with.
        BundleError: a file cannot be read.
    """
    if bundle.config != config.network:
        theirs, ours = bundle.config.to_dict(), config.network.to_dict()
        changes = ", ".join(f"network.{key} {ours[key]} for {theirs[key]}" for key in ours if ours[key] != theirs[key])
        raise ConfigError(
            f"--start {bundle.name}: the recipe has other networks ({changes}); --set them, or start anew"
        )
    held_out = fingerprints(parts.calibration)
    known = np.isin(held_out, bundle.fingerprints())
    known &= ~np.isin(held_out, fingerprints(np.concatenate([parts.train, parts.reference])))  # doubles in the data
    if known.any():
        raise DataError(
            f"--start {bundle.name}: it was trained on {known.sum()} of the {len(known)} images that are held out here"
            " for p-values, which would then promise too much; leave out images that it has seen"
        )
    state = make_state(config)
    for file, nets in (
        ("generator.safetensors", (state.networks.generator, state.generator_ema)),
        ("energy_net.safetensors", (state.networks.energy_net, state.energy_net_ema)),
    ):
        weights = load(bundle.read(file))
        for net in nets:
            net.load_state_dict(weights)
    checkpoint.write_config(run, config)
    write_file(run / TRAINED_ON, bundle.read(TRAINED_ON))
    checkpoint.save(run, state, config)


def seen_before(run: Path) -> NDArray[np.uint64]:
    """Fingerprints of what the networks of `run` had seen when it began; none where they began at random."""
    path = run / TRAINED_ON
    return np.load(path, allow_pickle=False) if path.exists() else np.empty(0, np.uint64)
