"""A fitted score as the arrays of `calibration.npz`, and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.ood.calibration import Fitted
from ddaebm.model.ood.dense import Dense
from ddaebm.model.ood.explain import Explainer
from ddaebm.model.ood.pixels import Pixels
from ddaebm.model.ood.scoring import Scorer
from ddaebm.model.ood.spots import Spots


def to_arrays(fitted: Fitted) -> dict[str, NDArray[Any]]:
    """Return the arrays by name. A score without spots has neither theirs nor `tails`."""
    explainer = fitted.explainer
    arrays = vars(explainer.pixels) | vars(fitted.scorer) | {"log_energies": explainer.log_energies}
    if explainer.spots is None:
        return {name: array for name, array in arrays.items() if name != "tails"}
    return arrays | vars(explainer.spots)


def from_arrays(arrays: Mapping[str, NDArray[Any]], spots: bool) -> Fitted:
    """Make the score of these arrays. Raises KeyError if one is missing."""
    if not spots:
        arrays = {**arrays, "tails": np.empty((0, 2))}
    kind = Dense if "dense_mean" in arrays else Spots
    explainer = Explainer(
        arrays["log_energies"], Pixels(**_fields(Pixels, arrays)), kind(**_fields(kind, arrays)) if spots else None
    )
    return Fitted(Scorer(**_fields(Scorer, arrays)), explainer)


def _fields(kind: type[Any], arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {field.name: arrays[field.name] for field in dataclasses.fields(kind)}
