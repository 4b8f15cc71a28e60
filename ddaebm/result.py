"""The result of `Model.score`: arrays, with verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.bulk import Scored
from ddaebm.model.errors import ImageError, InputError
from ddaebm.model.ood.conformal import fdr_threshold

_SHOWN = 3  # names in an error


@dataclass(frozen=True, repr=False, eq=False)
class ScoreResult:
    """Scores of N images, in the order they were given.

    `energies` are noiseless: each level's energy network is given the scaled image without added noise.
    """

    energies: NDArray[np.float32]  # (N, T), low on data; no unit
    energy_quantiles: NDArray[np.float64]  # (N, T), share of the calibration images with a lower energy
    ood_score: NDArray[np.float64]  # (N,), high means out of distribution; no unit
    p_value: NDArray[np.float64]  # (N,), conformal, in (0, 1]
    because: tuple[str, ...]  # "spot" or "whole": what makes the score, the hottest spot or the whole image
    box: NDArray[np.int64]  # (N, 4), left, top, width, height of the spot, in pixels of the model; zeros without one
    resized: NDArray[np.bool_]  # (N,), whether the image had another size than the model's
    names: tuple[str, ...]  # file names, or positions for arrays
    calibration_size: int  # number n of calibration images; the smallest possible p-value is 1/(n + 1)

    def __len__(self) -> int:
        return len(self.p_value)

    def __repr__(self) -> str:
        low, high = self.p_value.min(), self.p_value.max()
        return f"<ddaebm.ScoreResult of {len(self)} images, p_value {low:.4g} to {high:.4g}>"

    def is_ood(self, alpha: float = 0.05) -> NDArray[np.bool_]:
        """p_value <= alpha, (N,). Over calibration sets, ordinary images are flagged at rate alpha at most, on average.

        For the rate of this calibration set see `Model.false_alarm_interval`.

        Raises:
            InputError: alpha is not in [1/(n + 1), 1), so that it could never fire.
        """
        return self.p_value <= self._rate("alpha", alpha)

    def select(self, fdr: float = 0.1) -> NDArray[np.bool_]:
        """Images selected as out of distribution by Benjamini and Hochberg's procedure, (N,).

        Its false discovery rate is at most `fdr`: the mean, over batches like this one, of the share of the selected
        images that are ordinary, where a batch with nothing selected counts as 0.

        Raises:
            InputError: fdr is not in [1/(n + 1), 1).
        """
        return self.p_value <= fdr_threshold(self.p_value, self._rate("fdr", fdr))

    def _rate(self, name: str, rate: float) -> float:
        smallest = 1 / (self.calibration_size + 1)
        if not isinstance(rate, int | float | np.floating) or not smallest <= rate < 1:
            raise InputError(
                f"{name} must be a number in [{smallest:.3g}, 1), not {rate!r}: "
                f"with {self.calibration_size} calibration images no p-value is below {smallest:.3g}"
            )
        return float(rate)


def make_result(rows: Sequence[Scored], calibration_size: int) -> ScoreResult:
    """Rows as arrays. Raises ImageError, naming the first, where some could not be read."""
    require_readable([(row.name, row.error) for row in rows if row.error is not None], len(rows))
    return ScoreResult(
        energies=np.array([row.energies for row in rows], np.float32),
        energy_quantiles=np.array([row.energy_quantiles for row in rows], np.float64),
        ood_score=np.array([row.ood_score for row in rows], np.float64),
        p_value=np.array([row.p_value for row in rows], np.float64),
        because=tuple(row.because or "" for row in rows),
        box=np.array([row.box or (0, 0, 0, 0) for row in rows], np.int64),
        resized=np.array([row.resized for row in rows], np.bool_),
        names=tuple(row.name for row in rows),
        calibration_size=calibration_size,
    )


def require_readable(faults: Sequence[tuple[str, str | None]], count: int) -> None:
    """Raises ImageError where there are any, with the first names and reasons."""
    if faults:
        shown = "; ".join(f"{name}: {reason}" for name, reason in faults[:_SHOWN])
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ImageError(f"{len(faults)} of {count} images cannot be read: {shown}{more}")
