"""Large images: `fit` at a side of its own, the same scores on every route, masks, and the choice of the side."""

import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import ddaebm
from ddaebm.model.bulk import score_entries
from ddaebm.model.bundle import Bundle, contract_at, load_bundle
from ddaebm.model.config import ModelConfig
from ddaebm.model.errors import BundleError, ConfigError, DataError
from ddaebm.model.fitting import fit
from ddaebm.model.images.encode import encode_png
from ddaebm.model.images.formats import Entry
from ddaebm.model.large import choose_side, most_side, read_mask, read_region, require_side
from ddaebm.model.nets.torch_engine import TorchEngine
from ddaebm.model.ood.dense import PLACES_FORMS
from ddaebm.model.recalibration import calibrate
from ddaebm.model.runtime import OnnxEngine

Images = NDArray[np.uint8]
SIDE = 64


@pytest.fixture(scope="module")
def bundle(debug_bundle: Path) -> Bundle:
    return load_bundle(debug_bundle)


def weave(count: int, seed: int = 0, side: int = SIDE) -> Images:
    """A woven surface at a random phase, (n, side, side, 1)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    phase = rng.integers(0, 8, (count, 2, 1, 1))
    threads = 30 * (((y + phase[:, 0]) % 8 < 4) ^ ((x + phase[:, 1]) % 8 < 4))
    return (120 + threads + rng.normal(0, 5, (count, side, side))).clip(0, 255).astype(np.uint8)[..., None]


def with_hole(images: Images, top: int = 40, left: int = 12, size: int = 5) -> Images:
    images = images.copy()
    images[:, top : top + size, left : left + size] = 20
    return images


@pytest.fixture(scope="module")
def gate(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fit(bundle, weave(120), tmp_path_factory.mktemp("gate") / "large").bundle


@pytest.fixture(scope="module")
def engine(gate: Bundle) -> OnnxEngine:
    return OnnxEngine(gate, device="cpu")


def test_small_holes_are_found_and_new_images_pass(engine: OnnxEngine) -> None:
    new = weave(100, seed=1)
    assert (engine.score(new).p_value <= 0.05).mean() < 0.2
    scores = engine.score(with_hole(new))
    assert (scores.p_value <= 0.05).mean() > 0.95
    left, top, width, height = scores.box.T
    assert ((left < 17) & (left + width > 12) & (top < 45) & (top + height > 40)).mean() > 0.95


def test_the_bundle_tells_its_side_and_the_compared_forms(gate: Bundle) -> None:
    about = json.loads((gate.path / "bundle.json").read_text())
    assert (about["format_version"], about["side"]) == (8, SIDE)
    assert about["preprocessing"]["height"] == 16
    assert about["fit"]["side"] == SIDE
    assert gate.contract.shape == (SIDE, SIDE, 1)
    assert gate.native.shape == (16, 16, 1)
    assert about["fit"]["form"] == "all places alike"  # with 60 fitted images nothing is compared
    assert list(about["fit"]["forms"]) == ["all places alike"]
    assert set(about["calibration"]["of"]) == {"energy.onnx", "energy_net.safetensors", "places.onnx"}


def test_with_enough_images_the_table_of_faults_chooses(bundle: Bundle, tmp_path: Path) -> None:
    made = fit(bundle, weave(210, side=32), tmp_path / "gate")
    assert set(made.forms) == set(PLACES_FORMS)
    assert made.form in made.forms
    alike = made.bundle.explainer.spots.dense_mean.shape[:2] == (1, 1)
    assert alike == (made.form == "all places alike")


def test_the_score_is_the_same_on_every_route_and_in_every_batch(gate: Bundle, engine: OnnxEngine) -> None:
    images = with_hole(weave(10, seed=2))
    together = engine.score(images).ood_score
    np.testing.assert_array_equal([engine.score(image[None]).ood_score[0] for image in images], together)
    model = ddaebm.load(gate.path)
    files = [encode_png(image) for image in images]
    np.testing.assert_array_equal(model.score(files).ood_score, together)
    rows = score_entries(engine, [Entry(str(i), file) for i, file in enumerate(files)])
    np.testing.assert_array_equal([row.ood_score for row in rows], together)
    np.testing.assert_array_equal(engine.explain(images).ood_score, together)


def test_a_gate_that_was_replaced_on_disk_is_served_on(gate: Bundle, engine: OnnxEngine, tmp_path: Path) -> None:
    shutil.copytree(gate.path, tmp_path / "gate")
    loaded = OnnxEngine(load_bundle(tmp_path / "gate"), device="cpu")
    shutil.rmtree(tmp_path / "gate")
    np.testing.assert_array_equal(loaded.score(weave(2)).ood_score, engine.score(weave(2)).ood_score)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "CMYK", "I;16", "1"])
def test_every_mode_of_image_is_scored(gate: Bundle, mode: str) -> None:
    file = io.BytesIO()
    image = Image.new(mode, (50, 70))
    extra = {"transparency": 0} if mode in ("L", "P", "I;16", "1") else {}
    image.save(file, "TIFF" if mode == "CMYK" else "PNG", **extra)
    assert np.isfinite(ddaebm.load(gate.path).score(file.getvalue()).ood_score).all()


def test_torch_gives_the_same_scores(gate: Bundle, engine: OnnxEngine) -> None:
    images = with_hole(weave(6, seed=3))
    ours = TorchEngine(gate, "cpu", threads=1, max_batch=4).explain(images)
    theirs = engine.explain(images)
    np.testing.assert_allclose(ours.ood_score, theirs.ood_score, rtol=2e-3)
    np.testing.assert_allclose(ours.heat, theirs.heat, rtol=0.02, atol=0.01)


def test_a_large_photograph_and_odd_shapes_are_brought_to_the_side(gate: Bundle) -> None:
    model, file = ddaebm.load(gate.path), io.BytesIO()
    Image.new("RGB", (4000, 3000), (120, 130, 140)).save(file, "JPEG")
    result = model.score([file.getvalue(), np.zeros((7, 300), np.uint8), np.zeros((1, 1), np.uint8)])
    assert result.resized.all()
    assert np.isfinite(result.ood_score).all()


def test_heatmaps_and_regions_are_in_pixels_of_the_side(gate: Bundle) -> None:
    model, images = ddaebm.load(gate.path), with_hole(weave(4, seed=4))
    heat = model.heatmap(images)
    assert heat.shape == (4, SIDE, SIDE)
    y, x = np.unravel_index(heat.reshape(4, -1).argmax(1), heat.shape[1:])
    assert ((abs(y - 42) <= 4) & (abs(x - 14) <= 4)).all()
    for found in model.regions(images):
        strongest = found[0]
        assert strongest.left <= 14 < strongest.left + strongest.width
        assert strongest.top <= 42 < strongest.top + strongest.height
        assert [region.strength for region in found] == sorted((region.strength for region in found), reverse=True)
    assert model.sample(2, seed=1).shape == (2, 16, 16, 1)
    assert (model.shape, model.sample_shape) == ((SIDE, SIDE, 1), (16, 16, 1))


def test_a_masked_gate_does_not_look_elsewhere(bundle: Bundle, tmp_path: Path) -> None:
    mask = np.zeros((SIDE, SIDE, 1), np.uint8)
    mask[32:] = 255
    (tmp_path / "mask.png").write_bytes(encode_png(mask))
    region = read_region(tmp_path / "mask.png", SIDE)
    gate = OnnxEngine(fit(bundle, weave(120), tmp_path / "gate", region=region).bundle, device="cpu")
    new = weave(20, seed=5)
    np.testing.assert_array_equal(gate.score(with_hole(new, top=8)).ood_score, gate.score(new).ood_score)
    assert (gate.score(with_hole(new)).p_value <= 0.05).all()


def test_transparent_pixels_are_not_judged(gate: Bundle) -> None:
    model, image = ddaebm.load(gate.path), weave(1, seed=6)[0]
    opaque = np.full((SIDE, SIDE), 255, np.uint8)
    opaque[32:] = 0
    holed = with_hole(image[None])[0]
    cut = Image.fromarray(np.dstack([holed, opaque]), "LA")
    black = np.where(opaque[..., None] > 0, image, 0).astype(np.uint8)  # what the networks see of it
    heat = model.heatmap([cut, holed, black])
    assert not heat[0, 36:].any()
    assert heat[1, 36:].max() > 1
    assert heat[2, 36:].max() > 0
    np.testing.assert_array_equal(heat[0, :28], heat[2, :28])
    png = io.BytesIO()
    cut.save(png, "PNG")
    assert model.score(png.getvalue()).ood_score == model.score(cut).ood_score


def test_a_gate_fitted_to_cut_out_images_does_not_see_their_background(bundle: Bundle, tmp_path: Path) -> None:
    """The upper half is cut out; what is left below it in the file differs, and is transparent."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "cut"
    folder.mkdir()

    def cut(image: NDArray[np.uint8]) -> Image.Image:
        image = image.copy()
        image[32:] = rng.integers(0, 256, (32, SIDE, 1))
        opacity = np.full((SIDE, SIDE), 255, np.uint8)
        opacity[32:] = 0
        return Image.fromarray(np.dstack([image, opacity]), "LA")

    for i, image in enumerate(weave(60)):
        cut(image).save(folder / f"{i}.png")
    gate = ddaebm.load(bundle.path).fit(folder)
    assert gate.shape == (SIDE, SIDE, 1)
    new = [cut(image) for image in weave(20, seed=1)]
    holes = [cut(image) for image in with_hole(weave(20, seed=1), top=8)]
    assert gate.score(new).is_ood(0.05).mean() < 0.3
    assert gate.score(holes).is_ood(0.05).all()


def test_images_of_which_nothing_counts_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    clear = np.concatenate([weave(60), np.zeros((60, SIDE, SIDE, 1), np.uint8)], 3)
    with pytest.raises(DataError, match="wholly opaque"):
        fit(bundle, clear, tmp_path / "gate")


def test_flat_images_of_several_greys_can_be_fitted(bundle: Bundle, tmp_path: Path) -> None:
    flat = np.repeat(np.arange(60, dtype=np.uint8), SIDE * SIDE).reshape(60, SIDE, SIDE, 1)
    engine = OnnxEngine(fit(bundle, flat, tmp_path / "gate").bundle, device="cpu")
    assert np.isfinite(engine.score(flat).ood_score).all()
    assert (engine.score(with_hole(flat + 100)).p_value <= 0.05).all()


def test_a_mask_may_have_another_size_but_not_be_black_or_words(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.new("L", (300, 200), 255).save(path)
    assert read_mask(path, SIDE).shape == (SIDE, SIDE)
    Image.new("L", (300, 200), 0).save(path)
    with pytest.raises(DataError, match="white"):
        read_mask(path, SIDE)
    path.write_text("words")
    with pytest.raises(DataError, match="cannot be read"):
        read_mask(path, SIDE)
    with pytest.raises(DataError, match="cannot be read"):
        read_mask(tmp_path / "nowhere.png", SIDE)
    with pytest.raises(ConfigError, match="side"):
        read_region(path, None)


def test_a_mask_with_a_speck_of_white_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    speck = np.zeros((SIDE, SIDE), np.float32)
    speck[1, 1] = 1
    with pytest.raises(DataError, match="larger white area"):
        fit(bundle, weave(60), tmp_path / "gate", region=speck)


def entries(sides: list[tuple[int, int]]) -> list[Entry]:
    return [Entry(str(i), np.zeros((*side, 1), np.uint8)) for i, side in enumerate(sides)]


@pytest.mark.parametrize(
    ("sides", "chosen"),
    [
        ([(16, 16)] * 3, None),
        ([(31, 40)], None),  # less than twice the networks' side
        ([(32, 40)], 32),
        ([(101, 400), (300, 103), (50, 50)], 100),  # a multiple of 4 at most the median of the shorter sides
        ([(3000, 4000)], 256),
        ([], None),
    ],
)
def test_the_side_is_chosen_from_the_images(bundle: Bundle, sides: list[tuple[int, int]], chosen: int | None) -> None:
    assert bundle.config.fold == 4
    assert choose_side(bundle, entries(sides)) == chosen


def test_unreadable_images_choose_nothing(bundle: Bundle) -> None:
    assert choose_side(bundle, [Entry("0", b"words"), *entries([(64, 64)])]) == 64


@pytest.mark.parametrize("side", [0, 2, 66, 1028, 10**6])
def test_other_sides_are_refused(bundle: Bundle, side: int) -> None:
    with pytest.raises(ConfigError, match="multiple of 4 up to 1024"):
        require_side(bundle, side)


def test_the_networks_own_side_is_not_dense(bundle: Bundle) -> None:
    assert require_side(bundle, 16) is None
    assert require_side(bundle, 1024) == 1024
    assert contract_at(bundle.native, None) == bundle.native


def test_attention_bounds_the_side() -> None:
    plain = ModelConfig(data_shape=(3, 32, 32), widths=(8, 8, 8))
    attending = ModelConfig(data_shape=(3, 32, 32), widths=(8, 8, 8), attention=(8,))
    assert most_side(plain) == 1024
    assert most_side(attending) == 360  # 90 x 90 places attend to each other


def test_a_bundle_without_the_graph_says_how_to_get_it(bundle: Bundle, tmp_path: Path) -> None:
    old = replace(bundle, files={name: digest for name, digest in bundle.files.items() if name != "places.onnx"})
    assert choose_side(old, entries([(64, 64)])) is None
    with pytest.raises(BundleError, match="ddaebm export"):
        require_side(old, 64)


def test_a_gate_can_be_calibrated_and_fitted_again(gate: Bundle, tmp_path: Path) -> None:
    again, _, caught = calibrate(gate, weave(60, seed=6), tmp_path / "again", 0.05)
    assert (again.side, again.contract) == (SIDE, gate.contract)
    assert len(caught) == 18
    refitted = fit(again, weave(60, seed=7, side=32), tmp_path / "small").bundle
    assert refitted.side == 32
    plain = fit(again, weave(60, seed=7, side=16), tmp_path / "plain").bundle
    assert plain.side is None


def test_tampered_arrays_are_refused(gate: Bundle, tmp_path: Path) -> None:
    for name, damage in {
        "dense_std": lambda a: -a, "projection": lambda a: a[:-1], "region": lambda a: a[:-1],
        "dense_mean": lambda a: a * np.nan, "tails": lambda a: a[:2],
    }.items():  # fmt: skip
        folder = tmp_path / name
        shutil.copytree(gate.path, folder)
        arrays = dict(np.load(folder / "calibration.npz"))
        arrays[name] = damage(arrays[name])
        np.savez(folder / "calibration.npz", **arrays)
        manifest = json.loads((folder / "bundle.json").read_text())
        manifest["files"]["calibration.npz"] = hashlib.sha256((folder / "calibration.npz").read_bytes()).hexdigest()
        (folder / "bundle.json").write_text(json.dumps(manifest))
        with pytest.raises(BundleError, match=name):
            load_bundle(folder)


def test_another_graph_in_place_of_the_one_for_places_is_refused(gate: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "gate"
    shutil.copytree(gate.path, folder)
    shutil.copy(folder / "energy.onnx", folder / "places.onnx")
    manifest = json.loads((folder / "bundle.json").read_text())
    digest = hashlib.sha256((folder / "places.onnx").read_bytes()).hexdigest()
    manifest["files"]["places.onnx"] = manifest["calibration"]["of"]["places.onnx"] = digest
    (folder / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"places\.onnx is unlike"):
        OnnxEngine(load_bundle(folder), device="cpu")


@pytest.mark.parametrize("side", [66, 2048, -4, 0])
def test_a_manifest_with_another_side_is_refused(gate: Bundle, tmp_path: Path, side: int) -> None:
    folder = tmp_path / "gate"
    shutil.copytree(gate.path, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(manifest | {"side": side}))
    with pytest.raises(BundleError, match="side"):
        load_bundle(folder)
