"""A small image classifier. Its features measure the quality of samples, and its predictions count their classes.

It replaces the Inception network of FID for images unlike those that Inception was trained on. Results are comparable
only if they use the same classifier, so reports name it by the sha256 of its file.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from ddaebm.model.errors import DataError
from ddaebm.model.files import write_file
from ddaebm.model.images.contract import Contract
from ddaebm.model.noise import permutation, random_word
from ddaebm.training.data import split, to_tensor
from ddaebm.training.labels import Labelled

SHIPPED = Path(__file__).parent / "classifiers"
NUM_FEATURES = 128
BATCH = 128


class Classifier(nn.Module):
    """Images (B, C, H, W) in [-1, 1] -> logits (B, classes), by way of features (B, `NUM_FEATURES`)."""

    def __init__(self, contract: Contract, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.contract, self.classes = contract, classes

        def conv(a: int, b: int, stride: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())

        self.body = nn.Sequential(conv(contract.channels, 32, 1), conv(32, 64, 2), conv(64, 64, 1),
                                  conv(64, NUM_FEATURES, 2), conv(NUM_FEATURES, NUM_FEATURES, 1))  # fmt: skip
        self.head = nn.Linear(NUM_FEATURES, len(classes))

    def features(self, x: Tensor) -> Tensor:
        """Features (B, `NUM_FEATURES`) of images (B, C, H, W) in [-1, 1]."""
        out: Tensor = self.body(x).mean((2, 3))
        return out

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


def train_classifier(
    everything: Labelled, epochs: int = 8, seed: int = 0, report: Callable[[int, float], None] | None = None
) -> tuple[Classifier, float]:
    """Train a classifier with AdamW, a one-cycle learning rate and augmented images.

    Args:
        everything: All training images. They are split as in training of the generative model, so that both hold out
            the same images.
        report: Called with the number and the mean loss of each epoch.

    Returns:
        The classifier, and its accuracy on the held-out images.
    """
    parts = split(np.arange(len(everything.images)))
    data, held_out = everything.take(parts.train), everything.take(parts.held_out)
    height, width, channels = data.images.shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier(Contract(height, width, channels), data.classes)
    classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = epochs * -(-len(data.images) // BATCH)
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for epoch in range(epochs):
        order = permutation(len(data.images), random_word(seed, epoch))
        total = 0.0
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            rng = np.random.default_rng([seed, epoch, start])
            x, labels = to_tensor(augment(data.images[chosen], rng)), torch.from_numpy(data.labels[chosen])
            loss = F.cross_entropy(classifier(x), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        if report:
            report(epoch + 1, total / len(order))
    _, labels_seen = describe_images(classifier.eval(), held_out.images)
    return classifier, float((labels_seen == held_out.labels).mean())


def augment(images: NDArray[np.uint8], rng: np.random.Generator, shift: int = 2) -> NDArray[np.uint8]:
    """Shift images (B, H, W, C) by up to `shift` pixels along both axes, repeating edges, and mirror half of them."""
    batch, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
    rows = rng.integers(0, 2 * shift + 1, (batch, 1, 1)) + np.arange(height)[:, None]
    columns = rng.integers(0, 2 * shift + 1, (batch, 1, 1)) + np.arange(width)
    columns = np.where(rng.random((batch, 1, 1)) < 0.5, columns, columns[..., ::-1])
    moved: NDArray[np.uint8] = padded[np.arange(batch)[:, None, None], rows, columns]
    return moved


@torch.no_grad()
def describe_images(classifier: Classifier, images: NDArray[np.uint8]) -> tuple[Tensor, NDArray[np.int64]]:
    """Compute features (N, `NUM_FEATURES`) and predicted classes (N,) of images (N, H, W, C)."""
    features = torch.cat([classifier.features(to_tensor(images[i : i + 500])) for i in range(0, len(images), 500)])
    return features, classifier.head(features).argmax(1).numpy()


def classifier_bytes(classifier: Classifier) -> bytes:
    """Encode a classifier as safetensors, with its classes and image contract in the metadata."""
    about = {"classes": list(classifier.classes), "shape": list(classifier.contract.shape)}
    weights = {name: value.contiguous() for name, value in classifier.state_dict().items()}
    return save(weights, {"ddaebm": json.dumps(about)})


def write_classifier(path: Path, classifier: Classifier) -> str:
    """Write a classifier to `path` and return the sha256 of the file."""
    contents = classifier_bytes(classifier)
    write_file(path, contents)
    return hashlib.sha256(contents).hexdigest()


def read_classifier(source: str) -> tuple[Classifier, str]:
    """Read a classifier.

    Args:
        source: Path of a file, or the name of a shipped classifier.

    Returns:
        The classifier, and the sha256 of its file.

    Raises:
        DataError: The file does not exist or is not a classifier.
    """
    shipped = SHIPPED / f"{source}.safetensors"
    path = Path(source) if Path(source).is_file() else shipped
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.safetensors")))
        raise DataError(
            f"{source}: no such file and no shipped classifier; give one of {names}, or make one with"
            " `ddaebm classifier`"
        )
    contents = path.read_bytes()
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["ddaebm"])
        classifier = Classifier(Contract(*about["shape"]), tuple(about["classes"]))
        classifier.load_state_dict(load(contents))
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())  # torch lists one fault per line
        raise DataError(f"{path}: not a classifier's file ({reason}); make one with `ddaebm classifier`") from error
    return classifier.eval(), hashlib.sha256(contents).hexdigest()
