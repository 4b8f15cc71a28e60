"""The classifier for sample quality: it learns, never sees held-out images, and checks its file."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from ddaebm.model.errors import DataError
from ddaebm.training.classifier import (
    NUM_FEATURES,
    SHIPPED,
    Classifier,
    augment,
    classifier_bytes,
    describe_images,
    read_classifier,
    train_classifier,
    write_classifier,
)
from ddaebm.training.data import split
from ddaebm.training.labels import Labelled


def bars(count: int = 480) -> Labelled:
    """Images of horizontal or vertical bright bars in noise."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 120, (count, 12, 12, 1), dtype=np.uint8)
    labels = rng.integers(0, 2, count)
    for image, label, place in zip(images, labels, rng.integers(2, 10, count), strict=True):
        image[(place, slice(None)) if label else (slice(None), place)] = 250
    return Labelled(images, labels, ("standing", "lying"))


@pytest.fixture(scope="module")
def trained() -> tuple[Classifier, float]:
    return train_classifier(bars(), epochs=6)


def test_it_learns(trained: tuple[Classifier, float]) -> None:
    classifier, accuracy = trained
    assert accuracy > 0.95
    features, classes = describe_images(classifier, bars().images)
    assert features.shape == (480, NUM_FEATURES)
    assert (classes == bars().labels).mean() > 0.95


def test_what_is_held_out_has_no_say() -> None:
    data, told = bars(240), []
    held_out = np.isin(np.arange(240), split(np.arange(240)).held_out)
    spoilt = data._replace(
        images=np.where(held_out[:, None, None, None], data.images[::-1], data.images),
        labels=np.where(held_out, 1 - data.labels[::-1], data.labels),
    )
    first, accuracy = train_classifier(data, epochs=3, report=lambda epoch, loss: told.append((epoch, loss)))
    second, other = train_classifier(spoilt, epochs=3)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert accuracy != other
    assert [epoch for epoch, _ in told] == [1, 2, 3]
    assert told[-1][1] < told[0][1]


def test_its_file_is_read_back(trained: tuple[Classifier, float], tmp_path: Path) -> None:
    classifier, _ = trained
    sha256 = write_classifier(tmp_path / "bars.safetensors", classifier)
    assert sha256 == hashlib.sha256((tmp_path / "bars.safetensors").read_bytes()).hexdigest()
    again, same = read_classifier(str(tmp_path / "bars.safetensors"))
    assert (same, again.classes, again.contract) == (sha256, classifier.classes, classifier.contract)
    assert torch.equal(describe_images(again, bars().images)[0], describe_images(classifier, bars().images)[0])


@pytest.mark.parametrize(
    "contents",
    [b"", b"\0" * 7, b"\x40" + b"\0" * 30, b"\2" + b"\0" * 7 + b"{}", save({}, {"ddaebm": "[]"}), save({}, {"a": "b"}),
     save({}, {"ddaebm": json.dumps({"classes": ["a", "b"], "shape": [12, 12, 1]})})],
    ids=["empty", "no length", "cut off", "no metadata", "list", "other metadata", "no weights"],
)  # fmt: skip
def test_another_file_is_refused(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(contents)
    with pytest.raises(DataError, match=r"x\.safetensors: not a classifier's file") as raised:
        read_classifier(str(tmp_path / "x.safetensors"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [path.stem for path in SHIPPED.glob("*.safetensors")])
def test_a_shipped_classifier_is_read_and_written_back_to_the_same_bytes(name: str) -> None:
    classifier, sha256 = read_classifier(name)
    assert hashlib.sha256(classifier_bytes(classifier)).hexdigest() == sha256


def test_a_name_that_is_not_shipped_is_refused() -> None:
    with pytest.raises(DataError, match="no-such: no such file and no shipped classifier"):
        read_classifier("no-such")


def test_augmented_images_are_moved_and_mirrored_whole() -> None:
    image = np.arange(36, dtype=np.uint8).reshape(1, 6, 6, 1)
    seen = {moved[2:4, 2:4, 0].tobytes() for moved in augment(np.repeat(image, 500, 0), np.random.default_rng(0))}
    padded = np.pad(image[0, ..., 0], 2, mode="edge")
    windows = [padded[i : i + 6, j : j + 6] for i in range(5) for j in range(5)]
    expected = {part[2:4, 2:4].tobytes() for window in windows for part in (window, window[:, ::-1])}
    assert seen == expected
