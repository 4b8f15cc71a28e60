"""Measures of sample quality, for points and for images, that several figures share."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddaebm.model.nets.graphs import to_pixels
from ddaebm.model.noise import image_seeds
from ddaebm.model.progress import progress
from ddaebm.training.classifier import describe_images, read_classifier
from ddaebm.training.config import TrainConfig
from ddaebm.training.data import GAUSSIAN_CENTRES, GAUSSIAN_STD, Splits
from ddaebm.training.modes import frechet_distance, grid_kl, mode_report, precision_recall
from ddaebm.training.reproduce.fig1_toy import GRID, energy_log_density, log_25_gaussians
from ddaebm.training.reproduce.figure import Arrays
from ddaebm.training.step import TrainState
from ddaebm.training.trainer import generate

BATCH = 100


def measures(
    config: TrainConfig, count: int, parts: Splits, classifier: str, has_density: bool = True
) -> "OfPoints | OfImages":
    """The measures for models of `config`.

    Args:
        count: Number of samples to measure.
        classifier: Name or file of the classifier that measures images; not used for points.
        has_density: Whether exp(-E) is a density of points; not used for images.
    """
    if config.network.is_image:
        return OfImages(config, count, parts, classifier)
    return OfPoints(config, count, has_density)


class OfPoints:
    """Measures of a model of the 25 Gaussians: `count` samples, and the density exp(-E) if `has_density`."""

    def __init__(self, config: TrainConfig, count: int, has_density: bool = True) -> None:
        self.config, self.count, self.has_density = config, count, has_density

    def look(self, state: TrainState) -> Arrays:
        """`samples` (count, 2) of the averaged networks and, with a density, `log_density` on `fig1_toy.GRID`."""
        samples = generate(self.config, state.generator_ema, image_seeds(self.config.seed, self.count)).cpu().numpy()
        if not self.has_density:
            return {"samples": samples}
        return {"samples": samples, "log_density": energy_log_density(state.energy_net_ema, GRID)}

    def measure(self, found: Arrays) -> Mapping[str, float]:
        """The metrics of `training.modes.mode_report` and, with a density, `kl_density`: KL(true ‖ exp(-E)) in nats."""
        report = mode_report(found["samples"], GAUSSIAN_CENTRES, GAUSSIAN_STD)
        if "log_density" in found:
            report["kl_density"] = grid_kl(log_25_gaussians(GRID), found["log_density"])
        return report


class OfImages:
    """Measures of a model of images: `count` samples against held-out images, in the features of a classifier."""

    def __init__(self, config: TrainConfig, count: int, parts: Splits, classifier: str) -> None:
        self.config, self.count = config, count
        self.judge, _ = read_classifier(classifier)
        self.real: Tensor = describe_images(self.judge, parts.held_out[:10_000])[0]

    def look(self, state: TrainState) -> Arrays:
        """`samples` uint8 (count, H, W, C) of the averaged networks."""
        made: list[NDArray[np.uint8]] = []
        seeds = image_seeds(self.config.seed, self.count)
        with progress(f"sample, step {state.step}", self.count) as tick:
            for start in range(0, self.count, BATCH):
                x_0 = generate(self.config, state.generator_ema, seeds[start : start + BATCH])
                made.append(to_pixels(x_0).cpu().numpy())
                tick(len(x_0))
        return {"samples": np.concatenate(made)}

    def measure(self, found: Arrays) -> Mapping[str, float]:
        """`fd_classifier`, `precision` and `recall`, as `evaluate` reports them."""
        generated, _ = describe_images(self.judge, found["samples"])
        precision, recall = precision_recall(self.real[: self.count], generated)
        return {
            "fd_classifier": frechet_distance(self.real, generated),
            "precision": precision,
            "recall": recall,
        }
