"""Check the arrays of `calibration.npz` before they are served: a wrong one gives wrong p-values, or errors later."""

import numpy as np

from ddaebm.model.config import ModelConfig
from ddaebm.model.ood.dense import Dense
from ddaebm.model.ood.explain import Explainer
from ddaebm.model.ood.scoring import Scorer, weights_beside


def check_arrays(
    scorer: Scorer, explainer: Explainer, config: ModelConfig, shape: tuple[int, int, int], side: int | None, count: int
) -> None:
    """Check the shape, dtype and values of every array.

    Args:
        shape: (H, W, C) of the images that the networks take.
        side: Pixels along a side of an image that is scored densely, or None.
        count: Number of calibration images.

    Raises:
        ValueError: An array has another shape or dtype, or values that it cannot have. The message names it.
    """
    if scorer.whitening.ndim != 2 or scorer.surprise.ndim != 2:
        raise ValueError("whitening and surprise must be matrices")
    height, width, channels = shape
    num_steps, spots = config.num_steps, explainer.spots
    if isinstance(spots, Dense) != (side is not None):
        raise ValueError("its arrays do not belong to the side of the manifest")
    per_pixel = (num_steps, height, width)
    columns = len(scorer.whitening)  # D
    known = 2 * num_steps + 1, len(weights_beside(num_steps))  # P up to format 6, and since
    if scorer.mean.ndim != 1 or scorer.beside not in known:
        raise ValueError(f"mean is {scorer.mean.shape}, not {columns} and {known[0]} or {known[1]} more")
    columns_and_beside = len(scorer.mean)  # D + P
    shapes: dict[str, tuple[int, ...]] = {
        "pixel_mean": per_pixel, "pixel_std": per_pixel, "log_offset": (num_steps, 1, 1),
        "log_mean": per_pixel, "log_std": per_pixel,
        "mean": (columns_and_beside,), "whitening": (columns, columns),
        "surprise": (len(scorer.surprise), columns_and_beside),
        "calibration_scores": (count,), "log_energies": (num_steps, count),
    }  # fmt: skip
    arrays = vars(explainer.pixels) | vars(scorer) | {"log_energies": explainer.log_energies}
    if isinstance(spots, Dense):
        assert side is not None
        shapes |= _dense_shapes(spots, side // config.fold, sum(config.widths))
        arrays |= vars(spots)
    elif spots is not None:
        of_place = num_steps + 9 * channels
        shapes |= {
            "grey_mean": shape, "grey_std": shape, "place_mean": (of_place,), "place_whitening": (of_place, of_place),
            "unit": (1,), "tails": (2, 2),
        }  # fmt: skip
        arrays |= vars(spots)
    for name, wanted in shapes.items():
        array = arrays[name]
        if array.dtype not in (np.float32, np.float64) or array.shape != wanted:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not float {wanted}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds values that are not finite")
        if (
            name in ("pixel_std", "log_std", "log_offset", "grey_std", "unit", "offset", "dense_std")
            and array.min() <= 0
        ):
            raise ValueError(f"{name} holds values that are not above 0")
        if name == "tails" and array[:, 1].min() <= 0:
            raise ValueError(f"{name} holds scales that are not above 0")
        if name in ("calibration_scores", "log_energies") and (not count or (np.diff(array) < 0).any()):
            raise ValueError(f"{name} is empty or not ascending")


def _dense_shapes(dense: Dense, grid: int, channels: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays for `grid` places along a side, and a network of `channels` at all resolutions."""
    size = dense.projection.shape[-1]
    alike = dense.dense_mean.shape[:2] == (1, 1)
    of_places = (1, 1, size) if alike else (grid, grid, size)
    return {
        "offset": (channels,), "centre": (2 * channels,), "projection": (2 * channels, size),
        "dense_mean": of_places, "dense_std": of_places, "dense_whitening": (size, size), "region": (grid, grid),
        "unit": (1,), "tails": (3, 2),
    }  # fmt: skip
