"""A small classifier of labelled images: its features measure samples, its verdicts count what classes they show.

It stands where the Inception network stands in FID, for images that Inception was not made for. Its file is part of
the measure: numbers are comparable under one classifier alone, so it is named by the sha256 of that file.
"""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
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
    """Images (B, C, H, W) in [-1, 1] -> logits (B, classes) over features (B, `NUM_FEATURES`)."""

    def __init__(self, contract: Contract, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.contract, self.classes = contract, classes

        def conv(a: int, b: int, stride: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())

        self.body = nn.Sequential(conv(contract.channels, 32, 1), conv(32, 64, 2), conv(64, 64, 1),
                                  conv(64, NUM_FEATURES, 2), conv(NUM_FEATURES, NUM_FEATURES, 1))  # fmt: skip
        self.head = nn.Linear(NUM_FEATURES, len(classes))

    def features(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x).mean((2, 3))
        return out

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


def train_classifier(
    everything: Labelled, epochs: int = 8, seed: int = 0, report: Callable[[int, float], None] | None = None
) -> tuple[Classifier, float]:
    """Adam on one cycle of the learning rate, images shifted by up to two pixels and mirrored.

    Args:
        everything: all training images; the split that models are trained by holds out the same of them here.
        report: told of each epoch's number and mean loss.

    Returns:
        The classifier, and the share of the held-out images that it is right about.
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
    """Images (B, H, W, C), each moved by up to `shift` pixels both ways, edges repeated, and half of them mirrored."""
    batch, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
    rows = rng.integers(0, 2 * shift + 1, (batch, 1, 1)) + np.arange(height)[:, None]
    columns = rng.integers(0, 2 * shift + 1, (batch, 1, 1)) + np.arange(width)
    columns = np.where(rng.random((batch, 1, 1)) < 0.5, columns, columns[..., ::-1])
    moved: NDArray[np.uint8] = padded[np.arange(batch)[:, None, None], rows, columns]
    return moved


@torch.no_grad()
def describe_images(classifier: Classifier, images: NDArray[np.uint8]) -> tuple[Tensor, NDArray[np.int64]]:
    """Features (N, `NUM_FEATURES`) and likeliest class (N,) of images (N, H, W, C)."""
    features = torch.cat([classifier.features(to_tensor(images[i : i + 500])) for i in range(0, len(images), 500)])
    return features, classifier.head(features).argmax(1).numpy()


def classifier_bytes(classifier: Classifier) -> bytes:
    """The file of a classifier: safetensors, its classes and contract in the metadata."""
    about = {"classes": list(classifier.classes), "shape": list(classifier.contract.shape)}
    weights = {name: value.contiguous() for name, value in classifier.state_dict().items()}
    return save(weights, {"ddaebm": json.dumps(about)})


def write_classifier(path: Path, classifier: Classifier) -> str:
    """Returns the file's sha256."""
    contents = classifier_bytes(classifier)
    write_file(path, contents)
    return hashlib.sha256(contents).hexdigest()


def read_classifier(source: str) -> tuple[Classifier, str]:
    """A classifier and the sha256 of its file, which is named by its path or, where it is shipped, by its name.

    Raises:
        DataError: no such file, or not one of a classifier.
    """
    shipped = SHIPPED / f"{source}.safetensors"
    path = Path(source) if Path(source).is_file() else shipped
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.safetensors")))
        raise DataError(f"{source}: no such file, and no shipped classifier; there are {names}."
                        " `ddaebm classifier` makes one")  # fmt: skip
    contents = path.read_bytes()
    try:
        (length,) = struct.unpack("<Q", contents[:8])
        about = json.loads(json.loads(contents[8 : 8 + length])["__metadata__"]["ddaebm"])
        classifier = Classifier(Contract(*about["shape"]), tuple(about["classes"]))
        classifier.load_state_dict(load(contents))
    except (struct.error, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{path}: not a classifier's file ({error}); `ddaebm classifier` makes one") from error
    return classifier.eval(), hashlib.sha256(contents).hexdigest()
