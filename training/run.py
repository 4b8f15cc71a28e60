"""Set up a run for `ddaebm train`: a new one, one that starts from a bundle, or one that is resumed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ddaebm.model.bundle import Bundle, find_bundle, load_bundle
from ddaebm.model.errors import CheckpointError
from ddaebm.model.files import require_writable
from ddaebm.model.images.decode import MAX_PIXELS
from ddaebm.model.images.readers import find_contract
from ddaebm.training import checkpoint
from ddaebm.training.config import TrainConfig
from ddaebm.training.data import contract, describe
from ddaebm.training.recipes import IMAGES, make_config
from ddaebm.training.record import RECORD, new_parts, recorded_parts, write_record
from ddaebm.training.reproduce import UsageError
from ddaebm.training.start import ENCODER_STEPS, begin, require_fit


@dataclass(frozen=True)
class Prepared:
    """A run that `training.trainer.train` can carry out."""

    config: TrainConfig
    train: NDArray[Any]  # the training part of the data: uint8 (N, H, W, C), or float32 (N, D)
    messages: tuple[str, ...]  # what to tell the user before training


def prepare_run(
    recipe: str,
    out: Path,
    assignments: Mapping[str, str],
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    start: str | None = None,
    resume: bool = False,
    keep_parts: bool = False,
) -> Prepared:
    """Build or read the config of a run, load and record its data and, with `start`, write its first checkpoint.

    Args:
        recipe: Name of a recipe. For a run that exists, the recipe it was made with.
        out: The run folder.
        assignments: Settings that override those of the recipe, as for `TrainConfig.override`.
        size: (height, width) for the recipe `images`; the data's own by default.
        channels: 1 or 3, for the recipe `images`; the data's own by default.
        start: Name or folder of a bundle that gives the initial weights.
        resume: Go on with the run in `out`, if there is one. `size`, `channels` and `start` are then those
            that it began with.
        keep_parts: Go on with it although images were added to its data; leave them out.

    Raises:
        UsageError: The options contradict each other or the run in `out`.
        ConfigError: There is no such recipe or setting, a value is invalid, or the bundle has other networks.
        CheckpointError: The config of the run in `out` cannot be read.
        DataError: The data cannot be read or is not that of the run, or the bundle was trained on images that are held
            out.
        BundleError: The bundle cannot be read.
    """
    has_run = bool(checkpoint.list_checkpoints(out))
    if has_run and not resume:
        raise UsageError(f"{out} already holds a run; add --resume to go on with it, or give another --out")
    if not has_run:
        _require_ours(out)
    _check_form_options(recipe, size, channels)
    bundle = load_bundle(find_bundle(start)) if start else None
    if has_run:
        config = checkpoint.read_config(out)
        _require_same(out, config, size, channels, bundle)
    else:
        config = _new_config(recipe, assignments, size, channels)
        if bundle:
            assignments = {"start": bundle.digest, "encoder_steps": str(ENCODER_STEPS), **assignments}
    config = config.override(assignments)
    if config.recipe != recipe:
        raise UsageError(f"{out} is a run of {config.recipe!r}, not of {recipe!r}")

    if has_run:
        parts = recorded_parts(out, config, keep_parts=keep_parts)
    else:
        parts, record = new_parts(config)
        if bundle:
            require_fit(bundle, config, parts)
        write_record(out, record)
        if bundle:
            begin(out, bundle, config)
    messages = [describe(config, parts)]
    if resume:
        found = "going on with the run in it" if has_run else "no run in it yet, beginning at step 0"
        messages.append(f"{out}: {found}")
    return Prepared(config, parts.train, tuple(messages))


def _new_config(
    recipe: str, assignments: Mapping[str, str], size: tuple[int, int] | None, channels: int | None
) -> TrainConfig:
    """The settings of the recipe. `images` takes its network from the data and from `size` and `channels`."""
    if recipe != IMAGES:
        return make_config(recipe)
    if not assignments.get("data"):
        raise UsageError(f"the recipe {IMAGES} needs --data PATH")
    max_pixels = assignments.get("max_pixels", str(MAX_PIXELS))
    if not re.fullmatch(r"[1-9][0-9]{0,17}", max_pixels):
        raise UsageError(f"max_pixels is a whole number from 1, not {max_pixels}")
    return make_config(recipe, find_contract(assignments["data"], size, channels, int(max_pixels)))


def _require_ours(out: Path) -> None:
    """Raises UsageError if `out` has files that `ddaebm train` would overwrite or mix with its own."""
    require_writable(out / "config.json")
    if not out.is_dir() or not any(out.iterdir()) or (out / RECORD).exists():  # of a run without a checkpoint
        return
    try:
        checkpoint.read_config(out)
    except CheckpointError as error:
        raise UsageError(f"{out} is not empty and not a run of `ddaebm train`; give another --out") from error


def _require_same(
    out: Path, config: TrainConfig, size: tuple[int, int] | None, channels: int | None, start: Bundle | None
) -> None:
    """Raises UsageError if an option says something else than the run in `out` began with."""
    form = contract(config.network) if config.network.is_image else None
    if form and size not in (None, (form.height, form.width)):
        raise UsageError(f"{out} is a run of images of {form.width}x{form.height}; leave out --size")
    if form and channels not in (None, form.channels):
        raise UsageError(f"{out} is a run of images of {form.channels} channels; leave out --channels")
    if start and start.digest != config.start:
        raise UsageError(f"{out} is a run that did not begin with {start.name} {start.digest[:12]}; leave out --start")


def _check_form_options(recipe: str, size: tuple[int, int] | None, channels: int | None) -> None:
    """Raises UsageError if `size` or `channels` is invalid, or is given for a recipe with a size of its own."""
    if recipe != IMAGES and (size or channels):
        raise UsageError(f"--size and --channels are for the recipe {IMAGES}; {recipe} has its own")
    if channels not in (None, 1, 3):
        raise UsageError(f"--channels is 1 (grey) or 3 (colour), not {channels}")
