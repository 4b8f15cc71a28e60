"""Measure what a gate would catch: the user's ordinary images are made faulty, and alarms are counted."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.ood.faults import FAULTS
from ddaebm.model.ood.masks import colour_of

Floats = NDArray[np.float64]
ScoreOf = Callable[[NDArray[np.uint8]], Floats]  # joined OOD scores of images (B, H, W, C)

SETS = sum(len(fault.severities) for fault in FAULTS)
MOST, MOST_DENSE = 200, 40  # images that are made faulty; of those that are scored densely, which takes long


class Caught(NamedTuple):
    """One row of the table."""

    fault: str
    severity: str
    auroc: float  # faulty against ordinary images
    caught: float  # share of faulty images with p <= alpha

    def to_dict(self) -> dict[str, Any]:
        return {**self._asdict(), "auroc": round(self.auroc, 4), "caught": round(self.caught, 4)}


def auroc(inside: NDArray[np.floating], outside: NDArray[np.floating]) -> float:
    """Area under the ROC curve with OOD as the positive class.

    This is the probability that a value of `outside` (M,) is above a value of `inside` (N,), ties counting half.
    """
    ordered = np.sort(inside)
    below, up_to = (np.searchsorted(ordered, outside, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(ordered)))


def spread(count: int, most: int = MOST) -> NDArray[np.int64]:
    """Indices of the images to make faulty, evenly over 0..count-1 and at most `most`."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def painted(images: NDArray[np.uint8], seed: int = 0) -> Iterator[tuple[str, str, NDArray[np.uint8]]]:
    """(fault, severity, faulty images) for every row of the table. Each row has random numbers of its own.

    The opacity of masked images stays as it is.
    """
    colour = colour_of(images)
    for number, fault in enumerate(FAULTS):
        for severity in fault.severities:
            rng = np.random.default_rng([seed, number, round(1000 * severity)])
            faulty = fault.paint(colour, severity, rng)
            if faulty.shape != images.shape:
                faulty = np.concatenate([faulty, images[..., -1:]], 3)
            yield fault.name, f"{severity:g} {fault.unit}", faulty


def power(
    images: NDArray[np.uint8], score_of: ScoreOf, ordinary: Floats, threshold: float, seed: int = 0
) -> list[Caught]:
    """The table of what is caught, the worst row first.

    Args:
        images: Ordinary images, uint8 (N, H, W, C), which are made faulty.
        score_of: Scores images that are made of `images`, row for row.
        ordinary: Scores of ordinary images, (M,).
        threshold: Score above which an image raises an alarm.
    """
    rows = [
        judge(fault, severity, score_of(faulty), ordinary, threshold)
        for fault, severity, faulty in painted(images, seed)
    ]
    return worst_first(rows)


def judge(fault: str, severity: str, scores: Floats, ordinary: Floats, threshold: float) -> Caught:
    """A row of the table from the scores of faulty images (N,). Other args as `power`."""
    return Caught(fault, severity, auroc(ordinary, scores), float((scores > threshold).mean()))


def worst_first(rows: Sequence[Caught]) -> list[Caught]:
    return sorted(rows, key=lambda row: (row.caught, row.auroc))


def mean_auroc(rows: Sequence[Caught]) -> float:
    return float(np.mean([row.auroc for row in rows]))


def table(rows: Sequence[Caught], alpha: float) -> str:
    """The table as aligned text."""
    lines = [f"{'fault':<14}{'severity':<24}{'AUROC':>7}{f'caught at alpha = {alpha:g}':>24}"]
    lines += [f"{row.fault:<14}{row.severity:<24}{row.auroc:>7.3f}{row.caught:>24.0%}" for row in rows]
    return "\n".join(lines)
