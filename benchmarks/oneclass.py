"""One class as ordinary, the others as strange: a frozen bundle fitted to few images, beside its peers.

    python -m benchmarks.oneclass fashion-mnist --train FASHION/train-images-idx3-ubyte.gz \\
        --test FASHION/t10k-images-idx3-ubyte.gz --doc docs/ood.md
    python -m benchmarks.oneclass cifar10-jpeg --train CIFAR/train --test CIFAR/test --doc docs/ood.md

Of each class, images of the bundle's training data that its networks and its score have not seen are fitted (parts
`choice` and `calibration`), at most 300. All test images are judged. Peers learn from the same 300 images.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from benchmarks.pages import write_section
from ddaebm.model.bundle import find_bundle, load_bundle
from ddaebm.model.fitting import choose, powers_of
from ddaebm.model.images.arrays import fingerprints
from ddaebm.model.ood.calibration import CrossFitted, cross_fit, look
from ddaebm.model.ood.levels import LevelStatistics
from ddaebm.model.ood.power import auroc, mean_auroc
from ddaebm.model.ood.scoring import FORMS, fit_scorer, statistics
from ddaebm.model.runtime import OnnxEngine
from ddaebm.training.labels import Labelled, read_labelled

Images = NDArray[np.uint8]
Floats = NDArray[np.float64]
Detector = Callable[[Images, LevelStatistics], Floats]  # high: strange

FITTED = 300
SHOWN = 60  # images that are made faulty to choose the form
ALPHA = 0.05
CHOSEN = "fit"


def detectors(engine: OnnxEngine, images: Images, levels: LevelStatistics) -> tuple[dict[str, Detector], str]:
    """All detectors, fitted to `images`, and the form that `ddaebm fit` chooses."""
    crosses: dict[str, CrossFitted] = {form: cross_fit(images, levels, FITTED, form=form) for form in FORMS}
    powers = powers_of(engine.level_statistics, crosses, images, ALPHA, most=SHOWN)
    form = choose({name: mean_auroc(rows) for name, rows in powers.items()})
    rows = statistics(levels.energies, levels.features)
    mahalanobis, pixels = fit_scorer(rows, levels=0), flat(images)
    spread = np.maximum(rows.std(0), 1e-9)
    near = NearestNeighbors(n_neighbors=5).fit(rows / spread)
    pca, alike = PCA(0.9, random_state=0).fit(pixels), NearestNeighbors(n_neighbors=5).fit(pixels)

    def of_fit(name: str) -> Detector:
        return lambda images, levels: crosses[name].fitted.score(images, levels).ood_score

    def residual(images: Images, _: LevelStatistics) -> Floats:
        left: Floats = np.square(flat(images) - pca.inverse_transform(pca.transform(flat(images)))).sum(1)
        return left

    return {
        CHOSEN: of_fit(form),
        **{f"fit, {name}": of_fit(name) for name in FORMS},
        "Mahalanobis, energies and features": lambda _, levels: mahalanobis.whole(
            statistics(levels.energies, levels.features)),
        "kNN, energies and features": lambda _, levels: near.kneighbors(
            statistics(levels.energies, levels.features) / spread)[0][:, -1],
        "PCA reconstruction": residual,
        "kNN on pixels": lambda images, _: alike.kneighbors(flat(images))[0][:, -1],
    }, form  # fmt: skip


def flat(images: Images) -> Floats:
    return images.reshape(len(images), -1) / 255


def measure(engine: OnnxEngine, known: Labelled, test: Labelled) -> tuple[dict[str, list[float]], list[str]]:
    """AUROC of each detector, a class after the other, and the form that was chosen for each."""
    unseen = np.flatnonzero(~np.isin(fingerprints(known.images), engine.bundle.fingerprints()))
    seen_by_test = look(engine.level_statistics, test.images)
    found: dict[str, list[float]] = {}
    forms = []
    for label in range(len(known.classes)):
        mine = unseen[known.labels[unseen] == label][:FITTED]
        images = known.images[mine]
        made, form = detectors(engine, images, look(engine.level_statistics, images))
        forms.append(form)
        inside = test.labels == label
        for name, detector in made.items():
            scores = detector(test.images, seen_by_test)
            found.setdefault(name, []).append(auroc(scores[inside], scores[~inside]))
    return found, forms


def markdown(found: dict[str, list[float]], forms: list[str], classes: tuple[str, ...]) -> str:
    lines = [f"| detector | mean | {' | '.join(classes)} |", "|---" * (len(classes) + 2) + "|"]
    for name, values in found.items():
        lines.append(f"| {name} | {np.mean(values):.3f} | {' | '.join(f'{value:.3f}' for value in values)} |")
    counts = ", ".join(f"{form} {forms.count(form)} times" for form in FORMS)
    return "\n".join([*lines, "", f"Chosen by the table of faults: {counts}."])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.oneclass", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("bundle")
    parser.add_argument("--train", required=True, help="the bundle's training images, with labels")
    parser.add_argument("--test", required=True)
    parser.add_argument("--doc", type=Path, help="write the table between the bundle's marks in this file as well")
    args = parser.parse_args()
    engine = OnnxEngine(load_bundle(find_bundle(args.bundle)), device="cpu")
    known, test = (read_labelled(path, engine.contract) for path in (args.train, args.test))
    section = markdown(*measure(engine, known, test), known.classes)
    print(section)
    if args.doc:
        name = engine.bundle.name
        write_section(args.doc, f"<!-- oneclass:{name}:begin -->", f"<!-- oneclass:{name}:end -->", section)


if __name__ == "__main__":
    main()
