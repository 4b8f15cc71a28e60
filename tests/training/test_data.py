"""Made data, splits that never move, and batches that are a function of the step."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ddaebm.model.config import ModelConfig
from ddaebm.model.errors import DataError
from ddaebm.model.nets.graphs import to_pixels
from ddaebm.training.data import batch_at, contract, flip_images, load_data, split, to_tensor
from ddaebm.training.recipes import make_config

IMAGES, POINTS = make_config("debug").network, make_config("toy").network
GOLDEN_RANGE = {
    "train": "f0019ddf3ed75568",
    "reference": "54a33e1afa68e618",
    "choice": "8d594c7e55f0c23c",
    "calibration": "9f0607043106f1e6",
}
GOLDEN_SHAPES = {
    "train": "a9748fd967572715",
    "reference": "3f0ceb50621ac740",
    "choice": "15d039c4e1448b2e",
    "calibration": "b219afc735d5e706",
}


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(60_000, (48_000, 4_000, 3_000, 5_000)), (3_000, (2_400, 200, 150, 250)), (60, (48, 4, 3, 5))],
)
def test_split_sizes_and_disjointness(count: int, sizes: tuple[int, ...]) -> None:
    parts = split(np.arange(count))
    arrays = (parts.train, parts.reference, parts.choice, parts.calibration)
    assert tuple(len(part) for part in arrays) == sizes
    assert sorted(np.concatenate(arrays).tolist()) == list(range(count))
    assert (np.diff(parts.train) > 0).all()  # in its first order


def test_too_few_samples_to_split_are_refused() -> None:
    with pytest.raises(DataError, match="59 samples are too few"):
        split(np.arange(59))


def test_split_is_golden() -> None:
    """Another digest means that calibration images have moved into training: never update it lightly."""
    digests = {name: part["sha256"][:16] for name, part in split(np.arange(60_000, dtype="<i4")).digests().items()}
    assert digests == GOLDEN_RANGE
    digests = {name: part["sha256"][:16] for name, part in split(load_data("shapes", IMAGES)).digests().items()}
    assert digests == GOLDEN_SHAPES


def test_digest_is_of_contents_and_order() -> None:
    data = np.arange(60, dtype=np.uint8)
    digests = split(data).digests()
    assert digests["calibration"]["count"] == 5
    assert digests == split(data.copy()).digests()
    assert digests["train"] != split(data[::-1]).digests()["train"]


def test_each_epoch_hands_out_every_sample_once() -> None:
    data = np.arange(103)
    epochs = [np.concatenate([batch_at(data, 10 * e + i, 10, seed=0) for i in range(10)]) for e in range(3)]
    assert all(len(set(epoch.tolist())) == 100 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    whole = np.concatenate([batch_at(np.arange(100), i, 25, seed=0) for i in range(4)])
    assert sorted(whole.tolist()) == list(range(100))


def test_a_batch_is_a_function_of_step_and_seed_alone() -> None:
    data = np.arange(50)
    forward = [batch_at(data, step, 10, seed=3).tolist() for step in range(20)]
    backward = [batch_at(data, step, 10, seed=3).tolist() for step in reversed(range(20))]
    assert forward == backward[::-1]
    assert forward != [batch_at(data, step, 10, seed=4).tolist() for step in range(20)]


def test_fewer_samples_than_a_batch_are_refused() -> None:
    with pytest.raises(DataError, match="9 training samples are fewer than one batch of 10"):
        batch_at(np.arange(9), 0, 10, seed=0)


def test_every_grey_level_survives_the_way_to_tensors_and_back() -> None:
    pixels = np.arange(256 * 3, dtype=np.uint32).astype(np.uint8).reshape(2, 16, 8, 3)
    tensor = to_tensor(pixels)
    assert tensor.shape == (2, 3, 16, 8)
    assert tensor.dtype == torch.float32
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert tensor[1, 2, 3, 4] == pixels[1, 3, 4, 2] / 127.5 - 1
    np.testing.assert_array_equal(to_pixels(tensor).numpy(), pixels)


def test_images_are_flipped_where_the_draw_is_below_a_half() -> None:
    images = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    flipped = flip_images(images, torch.tensor([0.49, 0.5, 0.0]))
    for i, mirrored in enumerate((True, False, True)):
        columns = [4, 3, 2, 1, 0] if mirrored else [0, 1, 2, 3, 4]
        assert torch.equal(flipped[i], images[i][:, :, columns])


def test_points_pass_unscaled() -> None:
    points = np.array([[3.0, -7.0]], dtype=np.float32)
    assert torch.equal(to_tensor(points), torch.tensor([[3.0, -7.0]]))


@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_are_bright_figures_on_black(channels: int) -> None:
    config = ModelConfig(data_shape=(channels, 16, 24), widths=(8, 16))
    images = load_data("shapes", config)
    assert images.shape == (3_000, 16, 24, channels)
    assert images.dtype == np.uint8
    assert (images[:, 0] == 0).all()
    assert images.max((1, 2, 3)).min() >= 128
    np.testing.assert_array_equal(images, load_data("shapes", config))


def test_25_gaussians_are_25_and_narrow() -> None:
    points = load_data("25-gaussians", POINTS)
    assert points.dtype == np.float32
    scaled = points * 2.828 / 2
    centres = np.round(scaled)
    assert len(np.unique(centres, axis=0)) == 25
    assert np.abs(centres).max() == 2
    assert (scaled - centres).std() == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize("name", ["25-gaussians", "pinwheel", "swiss-roll"])
def test_points_have_unit_variance_and_fill_the_figure(name: str) -> None:
    points = load_data(name, POINTS)
    assert points.shape == (200_000, 2)
    assert points.dtype == np.float32
    np.testing.assert_allclose(points.mean(0), 0, atol=0.01)
    np.testing.assert_allclose(points.std(0), 1, atol=0.01)
    assert np.abs(points).max() < 4
    np.testing.assert_array_equal(points, load_data(name, POINTS))


def test_the_pinwheel_has_five_blades() -> None:
    points = load_data("pinwheel", POINTS)
    radius, angle = np.hypot(*points.T), np.arctan2(points[:, 1], points[:, 0])
    ring = angle[(radius > 1.2) & (radius < 1.3)]
    counts, _ = np.histogram(ring, bins=60, range=(-np.pi, np.pi))
    spectrum = np.abs(np.fft.rfft(counts - counts.mean()))
    assert spectrum.argmax() == 5


def test_data_is_read_from_a_path_under_the_contract_of_the_networks(tmp_path: Path) -> None:
    images = load_data("shapes", IMAGES)[:3]
    np.save(tmp_path / "images.npy", images)
    np.testing.assert_array_equal(load_data(str(tmp_path / "images.npy"), IMAGES), images)
    assert contract(ModelConfig(data_shape=(3, 8, 12))).shape == (8, 12, 3)


@pytest.mark.parametrize(
    ("source", "config", "message"),
    [
        ("", IMAGES, "needs --data PATH"),
        ("nowhere.npy", IMAGES, "no such file"),
        ("nowhere.npy", POINTS, "points must come from a synthetic data set"),
        ("25-gaussians", IMAGES, r"samples have shape \(2,\), the networks take \(16, 16, 1\)"),
    ],
)
def test_a_source_that_cannot_be_used_is_refused(source: str, config: ModelConfig, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(source, config)
