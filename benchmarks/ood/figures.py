"""A plot of AUROC a set and a picture of the sets: white behind, to be read on a dark page and in print."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.ood.peers import OURS
from benchmarks.ood.sets import Images
from ddaebm.model.images.encode import make_grid

LOW, HIGH = 0.02, 0.9995  # of the axis: what is beyond is drawn at the end
TICKS = (0.02, 0.1, 0.5, 0.9, 0.99, HIGH)
# Told apart by shape and by lightness, for those who do not see colours and for print.
STYLES: dict[str, dict[str, Any]] = {
    "other uses of the same network": {"marker": "|", "color": "#777777", "s": 70, "linewidths": 1.4},
    "pixels alone": {"marker": "o", "facecolors": "none", "edgecolors": "#d95f02", "s": 26},
    OURS: {"marker": "D", "color": "#003f88", "s": 44, "zorder": 3},
}


def plot(result: Mapping[str, Any]) -> bytes:
    """PNG: a row a set, a mark a detector, on an axis that is spread near 1."""
    groups_of_sets = [result["reported"], result["unseen"], result["later"]]
    labels = [label for group in groups_of_sets for label in group]
    gaps = [gap for gap, group in enumerate(groups_of_sets) for _ in group]
    places = [place + gap for place, gap in enumerate(gaps)]
    figure = Figure(figsize=(8, 0.3 * len(labels) + 1.5), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    groups: dict[str, list[Mapping[str, Any]]] = {style: [] for style in STYLES}
    for name, row in result["detectors"].items():
        groups[OURS if name == OURS else list(STYLES)[not row["network"]]].append(row["sets"])
    for style, rows in groups.items():
        values = np.array([[sets[label]["auroc"] for label in labels] for sets in rows])
        axes.scatter(_spread(values), np.tile(places, (len(rows), 1)), label=style, **STYLES[style])
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    shown = [f"{'≤ ' if tick == LOW else '≥ ' if tick == HIGH else ''}{tick:g}" for tick in TICKS]
    axes.set_xticks(_spread(np.array(TICKS)), shown)
    axes.set_xlabel(f"AUROC, {result['name']} in distribution; the last eight sets were new to the score")
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return _png(figure, 130)


def pictures(ordinary: Images, sets: Mapping[str, Images], columns: int = 8) -> bytes:
    """PNG: a row of images a set, under a row of ordinary ones, with its name."""
    rows = {"ordinary": ordinary, **sets}
    grid = make_grid(np.concatenate([images[:columns] for images in rows.values()]), columns=columns, gap=2)
    figure = Figure(figsize=(4, 4 * grid.shape[0] / grid.shape[1]), facecolor="white")
    axes = figure.add_subplot()
    figure.subplots_adjust(0, 0, 1, 1)
    axes.imshow(grid.repeat(3 // grid.shape[2], axis=2), interpolation="nearest")
    side = ordinary.shape[1] + 2
    axes.set_yticks(side * np.arange(len(rows)) + side / 2 - 1.5, list(rows))
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return _png(figure, 100)


def _spread(auroc: Any) -> Any:
    """Log odds: 0.99 is as far from 0.9 as 0.999 from 0.99."""
    clipped = np.clip(auroc, LOW, HIGH)
    return np.log(clipped / (1 - clipped))


def _png(figure: Figure, dpi: int) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, bbox_inches="tight", metadata={"Software": None},
                   pil_kwargs={"optimize": True})  # fmt: skip
    return file.getvalue()
