"""A `Model` as an outlier detector with the methods of PyOD: `decision_function` and `predict`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddaebm.api import Model
from ddaebm.model.errors import InputError
from ddaebm.model.images.inputs import Images, is_array


class Detector:
    """Outlier detector in the way of PyOD: scores are high for outliers, and labels are 0 (inlier) or 1 (outlier).

    `decision_function` also gives what pytorch-ood calls the outlier score of `predict`.

    Args:
        model: a loaded model, whose calibration sets the threshold.
        contamination: PyOD's name for the rate of false alarms to accept, alpha.

    Attributes:
        threshold_: score above which `predict` returns 1.

    Raises:
        InputError: contamination is below 1/(n + 1), n the number of calibration images, or not below 1.
    """

    def __init__(self, model: Model, contamination: float = 0.05) -> None:
        smallest = 1 / (model.calibration_size + 1)
        if not smallest <= contamination < 1:
            raise InputError(f"contamination must be in [{smallest:.3g}, 1), not {contamination!r}")
        self.model = model
        self.contamination = contamination
        self.threshold_ = model.bundle.scorer.threshold(contamination)

    def decision_function(self, X: Images) -> NDArray[np.float64]:  # noqa: N803  # PyOD's name
        """OOD scores (N,), high for outliers.

        Args:
            X: as `Model.score`, but an array of two axes is rows of flattened images, (N, H·W·C) with the model's
                own H, W and C, as tools that handle tables pass them.

        Raises:
            InputError, DataError, ImageError: as `Model.score`.
        """
        return self.model.score(self._unflattened(X)).ood_score

    def predict(self, X: Images) -> NDArray[np.int64]:  # noqa: N803
        """1 for outliers, whose p-value is at most `contamination`, else 0; (N,). Args and Raises: as above."""
        return self.model.score(self._unflattened(X)).is_ood(self.contamination).astype(np.int64)

    def _unflattened(self, X: Any) -> Any:  # noqa: N803
        if not is_array(X) or np.ndim(X) != 2:
            return X
        rows = np.asarray(X)
        if rows.shape[1] != np.prod(self.model.shape):
            raise InputError(
                f"rows have {rows.shape[1]} values; flattened images of this model have {self.model.shape}"
            )
        return rows.reshape(-1, *self.model.shape)
