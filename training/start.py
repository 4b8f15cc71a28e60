"""Fine-tuning: start a run from the weights of a bundle, on the same images or others."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.bundle import Bundle
from ddaebm.model.errors import ConfigError, DataError
from ddaebm.model.files import write_file
from ddaebm.model.images.arrays import fingerprints
from ddaebm.model.nets.weights import ENERGY_NET, GENERATOR, load_weights
from ddaebm.training import checkpoint
from ddaebm.training.config import TrainConfig
from ddaebm.training.data import Splits
from ddaebm.training.step import make_state

# A bundle has no encoder. Train a new one first: with a random encoder the generator would learn to ignore z.
ENCODER_STEPS = 500
TRAINED_ON = "trained_on.npy"  # in the run folder: fingerprints of the images that the bundle was trained on


def require_fit(bundle: Bundle, config: TrainConfig, parts: Splits) -> None:
    """Check that a run of `config` on `parts` can begin with the weights of `bundle`.

    Raises:
        ConfigError: The bundle's networks are not those of `config`.
        DataError: The bundle was trained on images that `parts` holds out for calibration.
        BundleError: A file of the bundle cannot be read.
    """
    if bundle.config != config.network:
        theirs, ours = bundle.config.to_dict(), config.network.to_dict()
        changes = ", ".join(f"network.{key} {ours[key]} for {theirs[key]}" for key in ours if ours[key] != theirs[key])
        raise ConfigError(
            f"--start {bundle.name}: the recipe has other networks ({changes}); --set them, or train without --start"
        )
    held_out = fingerprints(parts.calibration)
    known = np.isin(held_out, bundle.fingerprints())
    known &= ~np.isin(held_out, fingerprints(np.concatenate([parts.train, parts.reference])))  # duplicates
    if known.any():
        raise DataError(
            f"--start {bundle.name}: it was trained on {known.sum()} of the {len(known)} images that are held out here"
            " for p-values, which would not be valid; remove the images that it was trained on from --data"
        )


def begin(run: Path, bundle: Bundle, config: TrainConfig) -> None:
    """Write the checkpoint of step 0 of `run`, with the bundle's generator and energy network.

    The bundle holds averaged weights. They become both the current weights and the averages.

    Raises:
        BundleError: A file of the bundle cannot be read.
    """
    state = make_state(config)
    for file, nets in (
        (GENERATOR, (state.networks.generator, state.generator_ema)),
        (ENERGY_NET, (state.networks.energy_net, state.energy_net_ema)),
    ):
        for net in nets:
            load_weights(net, bundle, file)
    checkpoint.write_config(run, config)
    write_file(run / TRAINED_ON, bundle.read(TRAINED_ON))
    checkpoint.save(run, state, config)


def seen_before(run: Path) -> NDArray[np.uint64]:
    """Fingerprints of the images that the start bundle of `run` was trained on; empty for a run without one."""
    path = run / TRAINED_ON
    return np.load(path, allow_pickle=False) if path.exists() else np.empty(0, np.uint64)
