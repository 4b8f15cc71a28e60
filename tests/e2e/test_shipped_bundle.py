"""The bundles that users get: what their model cards say holds on real images."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from ddaebm.model.bundle import SHIPPED, Bundle, find_bundle, load_bundle
from ddaebm.model.images.encode import make_grid
from ddaebm.model.images.readers import read_images
from ddaebm.model.noise import image_seeds
from ddaebm.model.runtime import OnnxEngine
from ddaebm.service.app import create_app
from ddaebm.service.settings import Settings

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = ("fashion-mnist", "cifar10-jpeg")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(find_bundle("fashion-mnist"))


@pytest.fixture(scope="module")
def runtime(bundle: Bundle) -> OnnxEngine:
    return OnnxEngine(bundle, device="cpu")


def p_values(runtime: OnnxEngine, name: str) -> NDArray[np.float64]:
    return runtime.score(read_images(FIXTURES / f"{name}-test-512.npz", runtime.bundle.contract)).p_value


def test_the_shipped_bundles_are_known() -> None:
    assert {folder.name for folder in SHIPPED.iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_small_and_its_picture_is_what_it_makes(name: str) -> None:
    bundle = load_bundle(find_bundle(name))
    assert bundle.name == name
    assert sum(file.stat().st_size for file in bundle.path.iterdir()) < 16e6
    shown = np.asarray(Image.open(io.BytesIO(bundle.read("samples.png"))), dtype=int)
    made = make_grid(OnnxEngine(bundle, device="cpu").sample(image_seeds(1, 64))).astype(int)
    assert np.abs(shown.reshape(made.shape) - made).max() <= 1  # other processors may round another way


@pytest.mark.parametrize(("strangers", "caught"), [("fashion-mnist", 0.999), ("mnist", 1.0)])
def test_the_one_of_photographs_catches_as_many_strangers_as_its_card_says(strangers: str, caught: float) -> None:
    runtime = OnnxEngine(load_bundle(find_bundle("cifar10-jpeg")), device="cpu")
    assert (p_values(runtime, strangers) <= 0.05).mean() == pytest.approx(caught, abs=0.01)  # of 512, not of 10,000


def test_it_tells_digits_from_clothes(runtime: OnnxEngine) -> None:
    clothes, digits = p_values(runtime, "fashion-mnist"), p_values(runtime, "mnist")
    wins = (digits[:, None] < clothes).mean() + 0.5 * (digits[:, None] == clothes).mean()
    assert wins > 0.97  # AUROC; 0.984 on all 10,000


def test_its_false_alarms_are_as_promised(runtime: OnnxEngine) -> None:
    # 512 images at 5 %: 25.6 expected; outside 11..45 with probability below 0.1 %.
    assert 11 <= (p_values(runtime, "fashion-mnist") <= 0.05).sum() <= 45


def test_what_it_makes_looks_normal_to_it(runtime: OnnxEngine) -> None:
    made = runtime.score(runtime.sample(image_seeds(5, 64))).ood_score
    digits = runtime.score(read_images(FIXTURES / "mnist-test-512.npz", runtime.bundle.contract)).ood_score
    assert np.median(made) < np.median(digits)


def test_the_heat_of_clothes_with_a_digit_pasted_in_sits_at_the_digit(runtime: OnnxEngine) -> None:
    clothes, digits = (
        read_images(FIXTURES / f"{name}-test-512.npz", runtime.bundle.contract)[:100]
        for name in ("fashion-mnist", "mnist")
    )
    side = 13
    places = np.random.default_rng(1).integers(0, 28 - side + 1, (100, 2))
    inside = np.zeros((100, 28, 28), dtype=bool)
    mixed = clothes.copy()
    for i, (top, left) in enumerate(places):
        square = np.s_[top : top + side, left : left + side]
        inside[i][square] = True
        mixed[i, ..., 0][square] = Image.fromarray(digits[i, 4:24, 4:24, 0]).resize((side, side))
    heats = [runtime.explain(images).heat for images in (clothes, mixed)]
    before, after = (
        [heat[mask].mean() - heat[~mask].mean() for heat, mask in zip(of, inside, strict=True)] for of in heats
    )
    assert np.mean(np.array(after) > 0) > 0.9
    assert np.mean(np.array(before) > 0) < 0.75  # the same squares before
    assert np.median(heats[0].max((1, 2))) == pytest.approx(1, abs=0.1)
    assert np.median(heats[1].max((1, 2))) > 1.05


def test_a_digit_is_too_hard_for_one_level_at_least(runtime: OnnxEngine) -> None:
    quantiles = [
        runtime.bundle.explainer.energy_quantiles(
            runtime.score(read_images(FIXTURES / f"{name}-test-512.npz", runtime.bundle.contract)).energies
        )
        for name in ("fashion-mnist", "mnist")
    ]
    assert np.abs(quantiles[0].mean(0) - 0.5).max() < 0.07  # uniform
    assert np.median(quantiles[1].max(1)) > 0.97


def test_the_service_takes_clothes_and_refuses_a_digit() -> None:
    files = [("images", (name, (FIXTURES / name).read_bytes())) for name in ("fashion.png", "digit.png")]
    with TestClient(create_app(Settings(_env_file=None, bundle="fashion-mnist", device="cpu"))) as client:
        results = client.post("/v1/scores", files=files).json()["results"]
    assert [result["is_ood"] for result in results] == [False, True]
    assert [len(result["energies"]) for result in results] == [4, 4]
    assert not any(result["resized"] for result in results)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_machine_that_made_it_is_in_it(name: str) -> None:
    for file in find_bundle(name).iterdir():
        contents = file.read_bytes()
        assert b"site-packages" not in contents
        assert b"stack_trace" not in contents
