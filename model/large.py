"""Large images for `fit`: the side at which they are scored densely, what that costs, and the mask of what counts."""

import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.bundle import Bundle
from ddaebm.model.config import ModelConfig
from ddaebm.model.errors import BundleError, ConfigError, DataError, ImageError
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.decode import MAX_PIXELS
from ddaebm.model.images.formats import Entry, file_entry
from ddaebm.model.images.readers import decode_entry, entry_form
from ddaebm.model.manifest import MAX_SIDE, WITHOUT_PLACES
from ddaebm.model.parallel import usable_cores
from ddaebm.model.runtime import OnnxEngine

USUAL_SIDE = 256  # pixels; the side that is chosen from the data is not larger
_LOOKED_AT = 1000  # images whose sizes choose the side
_ATTENTION = 8192  # places that attend to each other, at most: its weights are a square matrix


def choose_side(bundle: Bundle, images: Iterable[Entry], max_pixels: int = MAX_PIXELS) -> int | None:
    """The side at which images like these are scored densely; None: in the networks' own form.

    It is the median of their shorter sides, at most `USUAL_SIDE`. Images whose shorter side is less than twice that of
    the networks gain nothing from it.
    """
    if "places.onnx" not in bundle.files:
        return None
    shorter = []
    for entry in islice(images, _LOOKED_AT):
        try:
            shorter.append(min(entry_form(entry, max_pixels)[:2]))
        except ImageError:  # it is told when the images are read
            continue
    median = int(np.median(shorter)) if shorter else 0
    if median < 2 * max(bundle.native.height, bundle.native.width):
        return None
    fold = bundle.config.fold
    return min(median, USUAL_SIDE, most_side(bundle.config)) // fold * fold


def require_side(bundle: Bundle, side: int) -> int | None:
    """Return `side`, or None if it is that of the networks.

    Raises:
        ConfigError: Images cannot be scored at this side.
        BundleError: The bundle is of an older format.
    """
    if (side, side) == (bundle.native.height, bundle.native.width):
        return None
    fold, most = bundle.config.fold, most_side(bundle.config)
    if side % fold or not fold <= side <= most:
        own = (
            f", or {bundle.native.height}, that of the networks" if bundle.native.height == bundle.native.width else ""
        )
        raise ConfigError(f"side must be a multiple of {fold} up to {most} for this bundle{own}, not {side}")
    if "places.onnx" not in bundle.files:
        raise BundleError(
            f"{bundle.path}: bundles up to format {WITHOUT_PLACES} cannot score large images densely; bring it forward"
            " with `ddaebm export BUNDLE --data TRAINING_IMAGES --out NEW`"
        )
    return side


def most_side(config: ModelConfig) -> int:
    """The largest side in pixels. Attention needs memory that grows with the fourth power of the side."""
    if not config.attention:
        return MAX_SIDE
    per_place = config.data_shape[1] // max(height for height in config.heights if height in config.attention)
    return int(min(MAX_SIDE, per_place * _ATTENTION**0.5)) // config.fold * config.fold


def read_mask(path: Path, side: int) -> NDArray[np.float32]:
    """Read a picture of what counts, white, at this side: 1 or 0 for each pixel, (side, side).

    Raises:
        DataError: It cannot be read, or nothing of it is white.
    """
    try:
        pixels = decode_entry(file_entry(path), Contract(side, side, 1, "bilinear")).pixels[..., 0]
    except (ImageError, OSError) as error:
        raise DataError(
            f"{path}: the mask cannot be read ({error}); give an image, white where pixels count"
        ) from error
    if not (pixels > 127).any():
        raise DataError(f"{path}: nothing of the mask is white, so no pixel would count")
    return (pixels > 127).astype(np.float32)


def read_region(mask: Path | None, side: int | None) -> NDArray[np.float32] | None:
    """As `read_mask`, or None without a mask.

    Raises:
        ConfigError: Images are not scored densely.
    """
    if mask is None:
        return None
    if side is None:
        raise ConfigError("a mask is for images that are scored densely; give a side, such as 128, or no mask")
    return read_mask(mask, side)


def seconds_each(engine: OnnxEngine, side: int) -> float:
    """Seconds of this machine, with all cores, for one image at `side`."""
    images = np.zeros((1, side, side, engine.native.channels), np.uint8)
    engine.place_outputs(images)  # the first call allocates
    began = time.perf_counter()
    engine.place_outputs(images)
    return (time.perf_counter() - began) / usable_cores()
