"""The score and its peers, all fitted to the same ordinary images: none sees a strange one."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from torch import nn

from benchmarks.ood.sets import Images
from ddaebm.model.images.encode import encode_png
from ddaebm.model.ood.calibration import BATCH
from ddaebm.model.ood.levels import score_rows
from ddaebm.model.ood.scoring import fit_scorer, weights_beside
from ddaebm.model.runtime import OnnxEngine

Floats = NDArray[np.float64]
Detector = Callable[["Looked"], Floats]  # high: out of distribution, (N,)
OURS = "this score"
NEIGHBOURS, COMPONENTS = 5, 64
MOST, MOST_SVM = 10_000, 4_000  # images that a peer learns from: bounds on memory (123 MB of CIFAR-10) and time


@dataclass(frozen=True)
class Looked:
    """Images, with the outputs of the energy network for them."""

    images: Images
    rows: Floats  # (N, T + T·F + 2T + 1), as model.ood.levels.score_rows
    score: Floats  # the bundle's own, (N,)
    levels: int  # T
    seconds: float  # core seconds of the network for all images

    @property
    def flat(self) -> NDArray[np.float32]:
        return flat(self.images)

    @property
    def log_energies(self) -> Floats:
        return self.rows[:, : self.levels]

    @property
    def features(self) -> Floats:
        return self.in_distance[:, self.levels :]

    @property
    def in_distance(self) -> Floats:
        """Log energies and features, (N, T + T·F)."""
        return self.rows[:, : -len(weights_beside(self.levels))]

    def first(self, count: int) -> "Looked":
        share = min(count, len(self.images)) / len(self.images)
        return replace(
            self,
            images=self.images[:count],
            rows=self.rows[:count],
            score=self.score[:count],
            seconds=self.seconds * share,
        )


def look(runtime: OnnxEngine, images: Images) -> Looked:
    rows, scores, began = [], [], time.process_time()
    for i in range(0, len(images), BATCH):
        part = images[i : i + BATCH]
        found = runtime.level_statistics(part)
        rows.append(score_rows(part, found, runtime.explainer.pixels))
        scores.append(runtime.bundle.fitted.score(part, found).ood_score)
    seconds = time.process_time() - began
    return Looked(images, np.concatenate(rows), np.concatenate(scores), runtime.num_steps, seconds)


def network_detectors(known: Looked) -> dict[str, Detector]:
    """The score and other detectors on outputs of the energy network, fitted on the held-out images `known`."""
    mean, std = known.log_energies.mean(0), known.log_energies.std(0)
    lengths = png_bytes(known.images)
    levels = StandardScaler().fit(known.log_energies)

    def mean_z(looked: Looked) -> Floats:
        z: Floats = ((looked.log_energies - mean) / std).mean(1)
        return z

    def length(looked: Looked) -> Floats:
        standard: Floats = (png_bytes(looked.images) - lengths.mean()) / lengths.std()
        return standard

    found: dict[str, Detector] = {OURS: lambda looked: looked.score}
    for k in range(known.levels):
        found[f"energy, level {k}"] = partial(level_energy, k)
    return found | {
        "energies, mean z": mean_z,
        "energies, Mahalanobis": _mahalanobis(known, lambda looked: looked.log_energies),
        "energies and features, Mahalanobis": _mahalanobis(known, lambda looked: looked.in_distance),
        "energies, kNN (as MSMA)": _neighbours(levels.transform(known.log_energies),
                                               lambda looked: levels.transform(looked.log_energies)),
        "features, Mahalanobis": _mahalanobis(known, lambda looked: looked.features),
        "energy less PNG length": lambda looked: mean_z(looked) - length(looked),
    }  # fmt: skip


def pixel_detectors(known: Images, seed: int = 0) -> dict[str, Detector]:
    """Detectors on pixels alone."""
    pixels = flat(known)
    pca = PCA(COMPONENTS, random_state=seed).fit(pixels)
    reduced = pca.transform(pixels)
    forest = IsolationForest(random_state=seed).fit(reduced)
    svm = OneClassSVM(nu=0.05).fit(reduced[:MOST_SVM] / reduced.std(0))
    decode = autoencoder(pixels, seed)
    return {
        "PNG length": lambda looked: png_bytes(looked.images),
        "PCA reconstruction": lambda looked: np.square(
            looked.flat - pca.inverse_transform(pca.transform(looked.flat))).sum(1),
        "kNN on pixels": _neighbours(pixels, lambda looked: looked.flat),
        "kNN on PCA": _neighbours(reduced, lambda looked: pca.transform(looked.flat)),
        "isolation forest": lambda looked: -forest.score_samples(pca.transform(looked.flat)),
        "one-class SVM": lambda looked: -svm.score_samples(pca.transform(looked.flat) / reduced.std(0)),
        "autoencoder": lambda looked: np.square(looked.flat - decode(looked.flat)).sum(1),
    }  # fmt: skip


def _mahalanobis(known: Looked, rows: Callable[[Looked], Floats]) -> Detector:
    scorer = fit_scorer(rows(known), levels=0)
    return lambda looked: scorer.whole(rows(looked))


def _neighbours(known: NDArray[Any], points: Callable[[Looked], NDArray[Any]]) -> Detector:
    """Distance to the fifth nearest neighbour."""
    tree = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(known)
    return lambda looked: tree.kneighbors(points(looked))[0][:, -1]


def level_energy(k: int, looked: Looked) -> Floats:
    return looked.log_energies[:, k]


def flat(images: Images) -> NDArray[np.float32]:
    """Pixels (N, H·W·C) in [0, 1]."""
    scaled: NDArray[np.float32] = np.divide(images.reshape(len(images), -1), 255, dtype=np.float32)
    return scaled


def png_bytes(images: Images) -> Floats:
    """A measure of complexity that no model learnt (Serrà et al. 2020, *Input complexity and OOD detection*)."""
    return np.array([len(encode_png(image)) for image in images], dtype=np.float64)


def autoencoder(pixels: NDArray[np.float32], seed: int, epochs: int = 20) -> Callable[[NDArray[np.float32]], Floats]:
    """Two layers down to 32 numbers and two back, Adam; returns the reconstruction."""
    torch.manual_seed(seed)
    dim = pixels.shape[1]
    net = nn.Sequential(nn.Linear(dim, 256), nn.ReLU(), nn.Linear(256, 32),
                        nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, dim), nn.Sigmoid())  # fmt: skip
    data, optimizer = torch.from_numpy(pixels), torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(data)), 128):
            loss = (net(data[batch]) - data[batch]).square().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def reconstruct(pixels: NDArray[np.float32]) -> Floats:
        out: Floats = net(torch.from_numpy(pixels)).numpy()
        return out

    return reconstruct
