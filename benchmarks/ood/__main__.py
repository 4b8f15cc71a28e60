"""The OOD score beside its peers on one protocol: what each tells from the training data, and how fast.

    python -P benchmarks/ood.py fashion-mnist --train FASHION --test FASHION/t10k-images-idx3-ubyte.gz \\
        --ood mnist=MNIST/t10k-images-idx3-ubyte.gz --out runs/ood

All detectors learn from the same part of the training images, which standardises the score in the bundle and which its
networks did not see; those that take pixels alone learn from 6,000 of the networks' own as well. None sees a strange
image. OOD is the positive class: FPR95 is the share of test images flagged where 95 % of the strange ones are.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.stats import betabinom
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_curve
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from torch import nn

from model.bundle import find_bundle, load_bundle
from model.calibration import BATCH
from model.files import write_file
from model.images import encode_png, make_grid
from model.readers import read_images
from model.runtime import BundleRuntime, LevelStatistics
from model.scoring import fdr_threshold, fit_scorer, statistics
from training.data import split
from training.evaluate import auroc

Images = NDArray[np.uint8]  # (N, H, W, C)
Floats = NDArray[np.float64]
Detector = Callable[["Looked"], Floats]  # high: out of distribution, (N,)
NEIGHBOURS, COMPONENTS, MOST = 5, 64, 10_000  # MOST: images that a peer learns from


@dataclass(frozen=True)
class Looked:
    """Images, and what the energy network says of them."""

    images: Images
    levels: LevelStatistics
    seconds: float  # of the network, for all

    @property
    def flat(self) -> Floats:
        return self.images.reshape(len(self.images), -1) / 255.0

    @property
    def rows(self) -> Floats:
        return statistics(self.levels.energies, self.levels.features)

    @property
    def log_energies(self) -> Floats:
        return self.rows[:, : self.levels.energies.shape[1]]

    @property
    def features(self) -> Floats:
        return self.rows[:, self.levels.energies.shape[1] :]


def look(runtime: BundleRuntime, images: Images) -> Looked:
    began = time.perf_counter()
    parts = [runtime.level_statistics(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    seconds = time.perf_counter() - began
    return Looked(images, LevelStatistics(*map(np.concatenate, zip(*parts, strict=True))), seconds)


def make_sets(images: Images, seed: int = 0) -> dict[str, Images]:
    """Strange images of stated severity, made of `images`, which are square."""
    rng = np.random.default_rng(seed)
    shape, (side, channels) = images.shape, (images.shape[1], images.shape[3])
    cells = 4
    cut = images.reshape(len(images), cells, side // cells, cells, side // cells, channels).transpose(0, 1, 3, 2, 4, 5)
    order = rng.permuted(np.tile(np.arange(cells**2), (len(images), 1)), axis=1)
    pieces = cut.reshape(len(images), cells**2, *cut.shape[3:])[np.arange(len(images))[:, None], order]
    salted = np.where(rng.random((*shape[:3], 1)) < 0.1, rng.choice([0, 255], (*shape[:3], 1)), images)
    return {
        "Gaussian noise": rng.normal(127.5, 64, shape).clip(0, 255).astype(np.uint8),
        "uniform noise": rng.integers(0, 256, shape, dtype=np.uint8),
        "constant": np.broadcast_to(rng.integers(0, 256, (len(images), 1, 1, channels), dtype=np.uint8), shape).copy(),
        "inverted": 255 - images,
        "patches shuffled": pieces.reshape(cut.shape).transpose(0, 1, 3, 2, 4, 5).reshape(shape),
        "salt and pepper, 10 %": salted.astype(np.uint8),
        "flipped, top to bottom": images[:, ::-1].copy(),
        "turned by 90°": np.rot90(images, axes=(1, 2)).copy(),
        "blurred, radius 2": np.stack([_blurred(image) for image in images]),
    }


def _blurred(image: Images) -> Images:
    picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(2))).reshape(image.shape)


def peers(known: Looked, more: Images, seed: int = 0) -> dict[str, Detector]:
    """Detectors fitted on the held-out images `known`, and on `more` where they take pixels alone."""
    pixels = np.concatenate([known.images, more]).reshape(-1, known.flat.shape[1]) / 255.0
    pca = PCA(COMPONENTS, random_state=seed).fit(pixels)
    reduced = pca.transform(pixels)
    mean, std = known.log_energies.mean(0), known.log_energies.std(0)
    lengths = png_bytes(known.images)
    levels = StandardScaler().fit(known.log_energies)
    forest = IsolationForest(random_state=seed).fit(reduced)
    svm = OneClassSVM(nu=0.05).fit(reduced[:4_000] / reduced.std(0))
    decode = autoencoder(pixels, seed)

    def z(looked: Looked) -> Floats:
        return (looked.log_energies - mean) / std

    def length(looked: Looked) -> Floats:
        return (png_bytes(looked.images) - lengths.mean()) / lengths.std()

    scorer = fit_scorer(known.rows, known.rows, levels=len(mean))
    found: dict[str, Detector] = {"this score": lambda looked: scorer.ood_score(looked.rows)}
    for k in range(len(mean)):
        found[f"energy, level {k}"] = lambda looked, k=k: looked.log_energies[:, k]
    return found | {
        "energies, mean z": lambda looked: z(looked).mean(1),
        "energies, Mahalanobis": _mahalanobis(known, lambda looked: looked.log_energies),
        "energies and features, Mahalanobis": _mahalanobis(known, lambda looked: looked.rows),
        "energies, kNN (as MSMA)": _neighbours(levels.transform(known.log_energies),
                                               lambda looked: levels.transform(looked.log_energies)),
        "features, Mahalanobis": _mahalanobis(known, lambda looked: looked.features),
        "PNG length": lambda looked: length(looked),
        "energy less PNG length": lambda looked: z(looked).mean(1) - length(looked),
        "PCA reconstruction": lambda looked: np.square(
            looked.flat - pca.inverse_transform(pca.transform(looked.flat))).sum(1),
        "kNN on pixels": _neighbours(pixels, lambda looked: looked.flat),
        "kNN on PCA": _neighbours(reduced, lambda looked: pca.transform(looked.flat)),
        "isolation forest": lambda looked: -forest.score_samples(pca.transform(looked.flat)),
        "one-class SVM": lambda looked: -svm.score_samples(pca.transform(looked.flat) / reduced.std(0)),
        "autoencoder": lambda looked: np.square(looked.flat - decode(looked.flat)).sum(1),
    }  # fmt: skip


def _mahalanobis(known: Looked, rows: Callable[[Looked], Floats]) -> Detector:
    scorer = fit_scorer(rows(known), rows(known), levels=0)
    return lambda looked: scorer.ood_score(rows(looked))


def _neighbours(known: Floats, points: Callable[[Looked], Floats]) -> Detector:
    """Distance to the fifth nearest."""
    tree = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(known)
    return lambda looked: tree.kneighbors(points(looked))[0][:, -1]


def png_bytes(images: Images) -> Floats:
    """A measure of complexity that no model learnt (Serrà et al. 2020, *Input complexity and OOD detection*)."""
    return np.array([len(encode_png(image)) for image in images], dtype=np.float64)


def autoencoder(pixels: Floats, seed: int, epochs: int = 20) -> Callable[[Floats], Floats]:
    """Two layers down to 32 numbers and two back, Adam; returns the reconstruction."""
    torch.manual_seed(seed)
    dim = pixels.shape[1]
    net = nn.Sequential(nn.Linear(dim, 256), nn.ReLU(), nn.Linear(256, 32),
                        nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, dim), nn.Sigmoid())  # fmt: skip
    data, optimizer = torch.from_numpy(pixels).float(), torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(data)).split(128):
            loss = (net(data[batch]) - data[batch]).square().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def reconstruct(flat: Floats) -> Floats:
        out: Floats = net(torch.from_numpy(flat).float()).double().numpy()
        return out

    return reconstruct


def compare(
    detectors: Mapping[str, Detector], inside: Looked, outside: Mapping[str, Looked]
) -> dict[str, dict[str, object]]:
    """Each detector on each set: {"auroc", "aupr", "fpr95"}, and its milliseconds an image."""
    report: dict[str, Any] = {}
    for name, detector in detectors.items():
        began = time.perf_counter()
        usual = detector(inside)
        seconds = time.perf_counter() - began + inside.seconds * ("energ" in name or "feat" in name or "this" in name)
        sets = {}
        for label, looked in outside.items():
            strange = detector(looked)
            truth, scores = np.repeat([0, 1], [len(usual), len(strange)]), np.concatenate([usual, strange])
            false, true, _ = roc_curve(truth, scores)
            sets[label] = {
                "auroc": auroc(usual, strange),
                "aupr": float(average_precision_score(truth, scores)),
                "fpr95": float(false[np.searchsorted(true, 0.95)]),
            }
        report[name] = {"ms": 1e3 * seconds / len(usual), "sets": sets}
    return report


def false_alarms(p_values: Floats, calibration: int) -> list[dict[str, float]]:
    """Observed over m test images, beside the 99 % band of a rate that is itself a draw: beta-binomial."""
    rows = []
    for alpha in (0.01, 0.05, 0.1):
        j = int(np.floor(alpha * (calibration + 1) + 1e-9))
        low, high = betabinom.ppf([0.005, 0.995], len(p_values), j, calibration + 1 - j) / len(p_values)
        rows.append(
            {"alpha": alpha, "observed": float((p_values <= alpha).mean()), "low": float(low), "high": float(high)}
        )
    return rows


def discoveries(
    usual: Floats, strange: Floats, fdr: float = 0.1, batches: int = 1_000, seed: int = 0
) -> dict[str, float]:
    """Batches of 100 p-values, a tenth of them strange: mean share of false discoveries, and of the strange found."""
    rng, false, found = np.random.default_rng(seed), [], []
    for _ in range(batches):
        inside, outside = rng.choice(usual, 90, replace=False), rng.choice(strange, 10, replace=False)
        limit = fdr_threshold(np.concatenate([inside, outside]), fdr)
        wrong, right = (inside <= limit).sum(), (outside <= limit).sum()
        false.append(wrong / max(wrong + right, 1))
        found.append(right / 10)
    return {"fdr": fdr, "false_discoveries": float(np.mean(false)), "found": float(np.mean(found))}


def table(report: Mapping[str, Any]) -> str:
    """Markdown of AUROC, a row a detector; the best of each set in bold."""
    sets = {name: row["sets"] for name, row in report.items()}
    labels = list(next(iter(sets.values())))
    best = {label: max(round(row[label]["auroc"], 3) for row in sets.values()) for label in labels}
    lines = [f"| detector | {' | '.join(labels)} | ms an image |", "|---" * (len(labels) + 2) + "|"]
    for name, row in report.items():
        values = [round(row["sets"][label]["auroc"], 3) for label in labels]
        shown = [f"**{v:.3f}**" if v == best[label] else f"{v:.3f}" for v, label in zip(values, labels, strict=True)]
        lines.append(f"| {name} | {' | '.join(shown)} | {row['ms']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--train", required=True, help="the bundle's training images")
    parser.add_argument("--test", required=True)
    parser.add_argument("--ood", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--out", type=Path, required=True, help="folder for ood.json and sets.png")
    parser.add_argument("-n", type=int, default=2_000, help="images of each set")
    args = parser.parse_args()
    runtime = BundleRuntime(load_bundle(find_bundle(args.bundle)), device="cpu")
    contract = runtime.bundle.contract
    parts = split(read_images(args.train, contract))
    if parts.digests() != runtime.bundle.splits:
        parser.error("--train is not what the bundle was trained on")
    known = look(runtime, parts.reference)
    whole = read_images(args.test, contract)
    test = whole[: args.n]
    named = dict(text.split("=", 1) for text in args.ood)
    others = {name: read_images(path, contract)[: args.n] for name, path in named.items()} | make_sets(test)
    detectors = peers(known, parts.train[: MOST - len(known.images)])
    looked = {name: look(runtime, images) for name, images in others.items()}
    report = compare(detectors, look(runtime, test), looked)
    args.out.mkdir(parents=True, exist_ok=True)
    scorer = runtime.bundle.scorer
    p_values = {name: scorer.p_value(scorer.ood_score(seen.rows)) for name, seen in looked.items()}
    usual = scorer.p_value(scorer.ood_score(look(runtime, whole).rows))
    alarms = false_alarms(usual, len(scorer.calibration_scores))
    found = {name: discoveries(usual, p_values[name]) for name in named}
    result = {"bundle": runtime.bundle.digest, "images": args.n, "learnt_from": MOST, "detectors": report,
              "false_alarms": alarms, "discoveries": found}  # fmt: skip
    write_file(args.out / "ood.json", (json.dumps(result, indent=2) + "\n").encode())
    shown = np.concatenate([images[:8] for images in (test, *others.values())])
    write_file(args.out / "sets.png", encode_png(make_grid(shown, columns=8)))
    print(table(report))
    for row in alarms:
        band = f"99 % band {row['low']:.4f} to {row['high']:.4f}"
        print(f"alpha {row['alpha']}: {row['observed']:.4f} of all test images, {band}")
    for name, row in found.items():
        shares = f"false {row['false_discoveries']:.3f}, found {row['found']:.3f}"
        print(f"fdr {row['fdr']}, a tenth of {name}: {shares}")


if __name__ == "__main__":
    main()
