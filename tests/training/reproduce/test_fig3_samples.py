"""Figure 3: distances by brute force, paths in z, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from ddaebm.model.bundle import load_bundle
from ddaebm.model.errors import ConfigError, DataError
from ddaebm.model.noise import image_seeds
from ddaebm.model.runtime import OnnxEngine
from ddaebm.training.data import split
from ddaebm.training.reproduce import fig3_samples as samples
from tests.training.reproduce.golden import shapes, untrained_classifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, debug_bundle: Path) -> Path:
    made = tmp_path_factory.mktemp("samples")
    samples.reproduce(made / "figure", str(debug_bundle), shapes(made), untrained_classifier(made), images=20, seed=2)
    return made


def test_the_samples_are_those_of_the_bundle(folder: Path, debug_bundle: Path) -> None:
    with np.load(folder / "figure" / "arrays.npz") as arrays:
        made, guess, way = arrays["samples"], arrays["x0_hat"], arrays["interpolation"]
    served = OnnxEngine(load_bundle(debug_bundle)).sample(image_seeds(2, len(made)))
    assert np.abs(made.astype(int) - served.astype(int)).max() <= 1
    assert guess.shape == (8, 4, 1, 16, 16)
    starts = way[::9]
    assert np.abs(starts.astype(int) - made[:8].astype(int)).max() <= 1, "a path begins at the sample itself"
    assert (way[8::9] != starts).any(), "and does not stay there"


def test_distances_are_those_of_brute_force(folder: Path) -> None:
    parts = split(np.load(folder / "shapes.npy"))
    with np.load(folder / "figure" / "arrays.npz") as arrays:
        for points, found in ((arrays["samples"], "pixels_samples"), (parts.held_out[:20], "pixels_held_out")):
            difference = points[:20, None].astype(float) - parts.train[None].astype(float)
            wanted = np.sqrt(np.square(difference / 127.5).sum((2, 3, 4)))
            assert arrays[found][:20, 0] == pytest.approx(wanted.min(1), abs=2e-3)
        place = arrays["pixels_places"][3, 0]
        assert wanted.shape[1] > place >= 0
    metrics = json.loads((folder / "figure" / "metrics.json").read_text())
    assert metrics["pixels"]["held_out"]["median"] == pytest.approx(np.median(wanted.min(1)), rel=1e-4)


def test_a_model_that_only_repeats_its_training_images_is_found_out() -> None:
    train = np.random.default_rng(0).integers(256, size=(50, 4, 4, 1), dtype=np.uint8)
    near, places = samples._nearest(samples._flat(train[:9]), samples._flat(train), 2, "pixels")
    assert places[:, 0].tolist() == list(range(9))
    others, _ = samples._nearest(samples._flat(255 - train[:9]), samples._flat(train), 2, "pixels")
    assert samples._compare(near[:, 0], others[:, 0])["samples_nearer"] == 1


def test_a_stage_that_is_done_is_not_done_again(
    folder: Path, debug_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in (folder / "figure").iterdir() if p.is_file()}
    monkeypatch.setattr(samples, "draw_images", lambda *_: pytest.fail("drawn again"))
    monkeypatch.setattr(samples, "_nearest", lambda *_: pytest.fail("sought again"))
    again = {"images": 20, "seed": 2, "classifier": str(folder / "classifier.safetensors")}
    samples.reproduce(folder / "figure", str(debug_bundle), str(folder / "shapes.npy"), **again)
    assert {p.name: p.read_bytes() for p in (folder / "figure").iterdir() if p.is_file()} == before
    with pytest.raises(ConfigError, match="other settings"):
        samples.reproduce(folder / "figure", str(debug_bundle), str(folder / "shapes.npy"), **again | {"seed": 3})


def test_it_says_which_images_it_needs(folder: Path, debug_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"needs --data PATH: the images that .* was trained on"):
        samples.reproduce(tmp_path / "figure", str(debug_bundle))
    np.save(tmp_path / "others.npy", np.load(folder / "shapes.npy")[::-1])
    with pytest.raises(DataError, match="not the images that debug was trained on"):
        samples.reproduce(tmp_path / "figure", str(debug_bundle), str(tmp_path / "others.npy"))
