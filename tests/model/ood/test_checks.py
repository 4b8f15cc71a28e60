"""`calibration.npz`: an array that would fail or lie later is refused at load."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ddaebm.model.bundle import load_bundle
from ddaebm.model.errors import BundleError
from ddaebm.model.files import read_arrays
from tests.model import test_bundle
from tests.model.test_bundle import replace

bundle = test_bundle.bundle  # the fixture

ARRAYS = {
    "not finite": lambda a: np.where(np.arange(a.size).reshape(a.shape) == a.size - 1, np.nan, a),
    "infinite": lambda a: np.full_like(a, np.inf),
    "one less": lambda a: a[:-1],
    "one less in the last axis": lambda a: a[..., :-1],
    "empty": lambda a: a[:0],
    "twice": lambda a: np.concatenate([a, a]),
    "text": lambda a: a.astype(str),
    "complex": lambda a: a.astype(complex),
    "integers": lambda a: a.astype(int),
    "a number": lambda a: np.array(1.0),
    "one axis more": lambda a: a[None],
}


@pytest.mark.parametrize("change", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize(
    "name",
    ["pixel_mean", "pixel_std", "log_offset", "log_mean", "log_std", "mean", "whitening", "surprise",
     "calibration_scores", "log_energies", "tails", "grey_mean", "grey_std", "place_mean", "place_whitening", "unit"],
)  # fmt: skip
def test_an_array_that_would_fail_or_lie_later_is_refused(
    bundle: Path, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    arrays = read_arrays((bundle / "calibration.npz").read_bytes())
    arrays[name] = change(arrays[name])
    replace(bundle, "calibration.npz", npz_bytes(arrays))
    if name == "surprise" and arrays[name].shape in ((0, 17), (1, 17), (4, 17)) and arrays[name].dtype == float:
        load_bundle(bundle)  # any number of rows is a score
        return
    with pytest.raises(BundleError, match=r"calibration\.npz cannot be used"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("name", "change"),
    [("calibration_scores", lambda a: a[::-1]), ("log_energies", lambda a: np.sort(a + np.arange(10))[:, ::-1]),
     ("pixel_std", np.zeros_like), ("log_std", lambda a: -a), ("log_offset", np.zeros_like),
     ("grey_std", np.zeros_like), ("unit", np.zeros_like), ("tails", np.zeros_like)],
)  # fmt: skip
def test_values_that_an_array_cannot_have_are_refused(
    bundle: Path, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    arrays = read_arrays((bundle / "calibration.npz").read_bytes())
    replace(bundle, "calibration.npz", npz_bytes(arrays | {name: change(arrays[name])}))
    with pytest.raises(BundleError, match=f"calibration.npz cannot be used .{name}"):
        load_bundle(bundle)


def npz_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
