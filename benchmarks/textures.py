"""Faults on real surfaces: `fit` beside `calibrate`, PCA and nearest neighbours.

    python -m benchmarks.textures cifar10-jpeg --doc docs/ood.md

The photographs `brick`, `grass` and `gravel` of scikit-image are cut into 625 disjoint patches of 20x20 pixels. In each
of ten random splits 160 patches are fitted, 160 calibrate, and the faults of `benchmarks/painters.py` are painted on
the other 305. PCA and neighbours learn from the pixels of the 160 that are fitted.
"""

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from benchmarks.pages import write_section
from benchmarks.painters import FAULTS
from ddaebm.model.bundle import Bundle, find_bundle, load_bundle
from ddaebm.model.fitting import choose, powers_of
from ddaebm.model.images.decode import convert, from_pixels
from ddaebm.model.ood.calibration import Fitted, calibrated, cross_fit, look
from ddaebm.model.ood.levels import LevelStatistics
from ddaebm.model.ood.power import auroc, mean_auroc
from ddaebm.model.ood.scoring import FORMS
from ddaebm.model.runtime import OnnxEngine

Floats = NDArray[np.float64]

TEXTURES = ("brick", "grass", "gravel")
SIDE, FITTED, CALIBRATED, SPLITS = 20, 160, 160, 10
SEVERITIES = ("faint", "middle", "strong")
DETECTORS = ("fit", "calibrate", "PCA", "nearest neighbours")
ALPHA = 0.05
SHOWN = 40  # images that are made faulty to choose the form


class Looked(NamedTuple):
    """Patches as they are, in the bundle's form, and the network's outputs for them."""

    raw: NDArray[np.uint8]  # (N, 20, 20)
    images: NDArray[np.uint8]  # (N, H, W, C)
    levels: LevelStatistics

    def take(self, index: NDArray[np.int64]) -> "Looked":
        return Looked(self.raw[index], self.images[index], self.levels.take(index))


def patches(texture: str) -> NDArray[np.uint8]:
    """All disjoint patches of a photograph, (625, 20, 20)."""
    found = importlib.util.find_spec("skimage")
    assert found is not None
    assert found.origin is not None
    with Image.open(Path(found.origin).parent / "data" / f"{texture}.png") as image:
        pixels = np.asarray(image.convert("L"))
    rows, columns = (side // SIDE for side in pixels.shape)
    cut = pixels[: rows * SIDE, : columns * SIDE].reshape(rows, SIDE, columns, SIDE).swapaxes(1, 2)
    return cut.reshape(-1, SIDE, SIDE)


def look_at(engine: OnnxEngine, raw: NDArray[np.uint8]) -> Looked:
    images = np.stack([convert(from_pixels(patch[..., None]), engine.contract).pixels for patch in raw])
    return Looked(raw, images, look(engine.level_statistics, images))


def detectors(bundle: Bundle, gate: Fitted, known: Looked) -> dict[str, Callable[[Looked], Floats]]:
    """The score of each detector, high for strange patches."""
    flat = _flat(known)
    pca, near = PCA(0.9, random_state=0).fit(flat), NearestNeighbors(n_neighbors=1).fit(flat)

    def by_pca(looked: Looked) -> Floats:
        residual: Floats = np.square(_flat(looked) - pca.inverse_transform(pca.transform(_flat(looked)))).sum(1)
        return residual

    def by_neighbours(looked: Looked) -> Floats:
        distance: Floats = near.kneighbors(_flat(looked))[0][:, 0]
        return distance

    return {
        "fit": lambda looked: gate.score(looked.images, looked.levels).ood_score,
        "calibrate": lambda looked: bundle.fitted.score(looked.images, looked.levels).ood_score,
        "PCA": by_pca,
        "nearest neighbours": by_neighbours,
    }


def chosen(engine: OnnxEngine, known: Looked) -> Fitted:
    """The score that `ddaebm fit` would choose, by a table of fewer images."""
    crosses = {form: cross_fit(known.images, known.levels, CALIBRATED, form=form) for form in FORMS}
    powers = powers_of(engine.level_statistics, crosses, known.images, ALPHA, most=SHOWN)
    return crosses[choose({form: mean_auroc(rows) for form, rows in powers.items()})].fitted


def measure(engine: OnnxEngine, texture: str) -> tuple[dict[str, Floats], int, int]:
    """(AUROC of each detector over splits, faults and severities, false alarms of `fit`, ordinary patches judged)."""
    raw = patches(texture)
    ordinary = look_at(engine, raw)
    faulty = {
        (fault, i): look_at(engine, paint(raw, severity, np.random.default_rng([i, *fault.encode()])))
        for fault, (paint, severities) in FAULTS.items()
        for i, severity in enumerate(severities)
    }
    found = {name: np.zeros((SPLITS, len(FAULTS), 3)) for name in DETECTORS}
    alarms = judged = 0
    for split in range(SPLITS):
        order = np.random.default_rng(split).permutation(len(raw))
        known, calibration, test = np.split(order, [FITTED, FITTED + CALIBRATED])
        cross = chosen(engine, ordinary.take(known))
        usual = ordinary.take(calibration)
        gate = calibrated(cross, cross.score(usual.images, usual.levels))
        new = ordinary.take(test)
        alarms += int((gate.score(new.images, new.levels).p_value <= ALPHA).sum())
        judged += len(test)
        for name, score_of in detectors(engine.bundle, gate, ordinary.take(known)).items():
            inside = score_of(new)
            for (fault, i), looked in faulty.items():
                found[name][split, list(FAULTS).index(fault), i] = auroc(inside, score_of(looked.take(test)))
    return found, alarms, judged


def markdown(results: dict[str, tuple[dict[str, Floats], int, int]]) -> str:
    lines = ["| texture | detector | " + " | ".join(FAULTS) + " | mean |", "|---|---|" + "---|" * (len(FAULTS) + 1)]
    for texture, (found, _, _) in results.items():
        for name, aurocs in found.items():
            means = aurocs.mean(0)  # (faults, severities)
            cells = " | ".join(" ".join(f"{value:.3f}" for value in row) for row in means)
            lines.append(f"| {texture} | {name} | {cells} | {means[:, 1].mean():.3f} |")
    alarms, judged = (sum(numbers) for numbers in zip(*((a, j) for _, a, j in results.values()), strict=True))
    lines += ["", f"Each cell: {', '.join(SEVERITIES)}. The last column is the mean at the middle severity."]
    lines += [
        f"False alarms of `fit` at alpha = {ALPHA}: {alarms} of {judged} ordinary patches, {alarms / judged:.2%}."
    ]
    return "\n".join(lines)


def _flat(looked: Looked) -> Floats:
    return looked.raw.reshape(len(looked.raw), -1).astype(np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.textures", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("bundle")
    parser.add_argument("--doc", type=Path, help="write the table between its marks in this file as well")
    args = parser.parse_args()
    engine = OnnxEngine(load_bundle(find_bundle(args.bundle)), device="cpu")
    section = markdown({texture: measure(engine, texture) for texture in TEXTURES})
    print(section)
    if args.doc:
        write_section(args.doc, "<!-- textures:begin -->", "<!-- textures:end -->", section)


if __name__ == "__main__":
    main()
