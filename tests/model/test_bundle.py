"""The disk format: a round trip, and a named error for every kind of tampering."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ddaebm.model.bundle
from ddaebm.model.bundle import MANIFEST, WEIGHTS, Bundle, copy_bundle, find_bundle, load_bundle, write_bundle
from ddaebm.model.config import ModelConfig
from ddaebm.model.errors import (
    BundleError,
    BundleHashError,
    BundleMissingFileError,
    BundlePathError,
    BundleVersionError,
    ConfigError,
)
from ddaebm.model.files import encode_npy
from ddaebm.model.images.contract import Contract
from ddaebm.model.ood.calibration import Fitted
from ddaebm.model.ood.explain import Explainer
from ddaebm.model.ood.pixels import Pixels
from ddaebm.model.ood.scoring import Scorer
from ddaebm.model.ood.spots import Spots

CONFIG = ModelConfig(data_shape=(1, 16, 16))
SCORER = Scorer(np.arange(17.0), np.eye(8) * 2, np.ones((2, 17)), np.arange(10.0), np.ones((2, 2)))
PIXELS = Pixels(
    *(np.full((4, *side), 3 + i, np.float32) for i, side in enumerate([(16, 16), (16, 16), (1, 1), (16, 16), (16, 16)]))
)
SPOTS = Spots(*(np.full(shape, 2, np.float32) for shape in [(16, 16, 1), (16, 16, 1), (13,), (13, 13), (1,)]))
EXPLAINER = Explainer(np.full((4, 10), 2, np.float32), PIXELS, SPOTS)
SPLITS = {"train": {"count": 3}, "calibration": {"count": 10, "sha256": "ca"}}
TRAINED_ON = np.array([3, 5], np.uint64)
NEEDED = [*WEIGHTS, *sorted(set(WEIGHTS.values()))]
FILES = {name: name.encode() * 10 for name in NEEDED} | {
    "README.md": b"# demo",
    "trained_on.npy": encode_npy(TRAINED_ON),
}


def write(path: Path, name: str = "demo", files: dict[str, bytes] = FILES) -> Bundle:
    form, training = Contract(16, 16, 1), {"recipe": "debug"}
    return write_bundle(path, name, CONFIG, form, Fitted(SCORER, EXPLAINER), training, SPLITS, files)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write(tmp_path / "demo").path


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    change(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def replace(bundle: Path, name: str, contents: bytes) -> None:
    """Replace a file and its hash in the manifest, as a forger would."""
    (bundle / name).write_bytes(contents)
    edit(bundle, lambda m: m["files"].update({name: hashlib.sha256(contents).hexdigest()}))


def test_round_trip(tmp_path: Path) -> None:
    written = write(tmp_path / "a" / "demo")
    loaded = load_bundle(tmp_path / "a" / "demo")
    assert (loaded.name, loaded.config, loaded.contract) == ("demo", CONFIG, Contract(16, 16, 1))
    assert (loaded.training, loaded.splits) == ({"recipe": "debug"}, SPLITS)
    for field in ("mean", "whitening", "surprise", "calibration_scores", "tails"):
        np.testing.assert_array_equal(getattr(loaded.scorer, field), getattr(SCORER, field))
    for field in ("pixel_mean", "pixel_std", "log_offset", "log_mean", "log_std"):
        np.testing.assert_array_equal(getattr(loaded.explainer.pixels, field), getattr(PIXELS, field))
    np.testing.assert_array_equal(loaded.explainer.log_energies, EXPLAINER.log_energies)
    for field in vars(SPOTS):
        np.testing.assert_array_equal(getattr(loaded.explainer.spots, field), getattr(SPOTS, field))
    np.testing.assert_array_equal(loaded.fingerprints(), TRAINED_ON)
    assert loaded.read("sampler.onnx") == FILES["sampler.onnx"]
    (loaded.path / "stray.txt").write_text("nobody vouches for it")
    with pytest.raises(BundleMissingFileError, match=r"stray\.txt"):
        loaded.read("stray.txt")
    assert loaded.digest == written.digest == hashlib.sha256((loaded.path / MANIFEST).read_bytes()).hexdigest()


def test_nothing_is_left_beside_a_written_bundle(tmp_path: Path) -> None:
    write(tmp_path / "demo")
    write(tmp_path / "demo")
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize("name", [*FILES, "calibration.npz"])
def test_one_changed_byte_in_any_file_is_a_hash_error(bundle: Path, name: str) -> None:
    contents = bytearray((bundle / name).read_bytes())
    contents[len(contents) // 2] ^= 1
    (bundle / name).write_bytes(contents)
    with pytest.raises(BundleHashError, match=name):
        load_bundle(bundle)


def test_one_changed_byte_in_the_manifest_breaks_it_or_changes_the_digest(bundle: Path) -> None:
    whole, digest = (bundle / MANIFEST).read_bytes(), load_bundle(bundle).digest
    for place in range(0, len(whole), 7):
        (bundle / MANIFEST).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert load_bundle(bundle).digest != digest
        except BundleError:
            continue


@pytest.mark.parametrize("name", [*FILES, "calibration.npz", MANIFEST])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleMissingFileError, match=name):
        load_bundle(bundle)


def test_a_folder_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleMissingFileError):
        load_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name", [*(name for name in NEEDED if name != "places.onnx"), "calibration.npz", "trained_on.npy"]
)
def test_a_manifest_must_name_what_serving_needs(bundle: Path, name: str) -> None:
    edit(bundle, lambda m: m["files"].pop(name))
    with pytest.raises(BundleMissingFileError, match=name):
        load_bundle(bundle)


def test_a_bundle_of_the_present_format_has_the_graph_for_large_images(tmp_path: Path) -> None:
    bundle = copy_bundle(load_bundle(find_bundle("fashion-mnist")), tmp_path / "copy").path
    edit(bundle, lambda m: m["files"].pop("places.onnx"))
    with pytest.raises(BundleMissingFileError, match=r"places\.onnx"):
        load_bundle(bundle)
    edit(bundle, lambda m: m.update(format_version=7))
    assert "places.onnx" not in load_bundle(bundle).files


@pytest.mark.parametrize("version", [1, 2, 3, 0, 99])
def test_another_format_version_is_refused(bundle: Path, version: int) -> None:
    edit(bundle, lambda m: m.update(format_version=version))
    with pytest.raises(BundleVersionError, match=f"format {version}"):
        load_bundle(bundle)


@pytest.mark.parametrize("name", ["energy.onnx", "energy_net.safetensors"])
def test_a_calibration_of_other_weights_is_refused(bundle: Path, name: str) -> None:
    replace(bundle, name, b"of another model")
    with pytest.raises(BundleHashError, match=rf"calibration\.npz belongs to another {name}"):
        load_bundle(bundle)


@pytest.mark.parametrize("contents", [b"no array", encode_npy(np.zeros(3)), encode_npy(np.zeros((2, 2), np.uint64))])
def test_fingerprints_that_are_none_are_a_bundle_error(bundle: Path, contents: bytes) -> None:
    replace(bundle, "trained_on.npy", contents)
    with pytest.raises(BundleError, match=r"trained_on\.npy"):
        load_bundle(bundle).fingerprints()


@pytest.mark.parametrize("name", ["../x", "sub/x", "..", ".", "", "{absolute}", "./x", "x/", "nul\0byte"])
def test_a_name_outside_the_folder_is_a_path_error(bundle: Path, name: str) -> None:
    outside = bundle.parent / "x"
    outside.write_bytes(b"secret")
    (bundle / "sub").mkdir()
    for folder in (bundle, bundle / "sub"):
        shutil.copy(outside, folder / "x")
    name = name.format(absolute=outside)
    edit(bundle, lambda m: m["files"].update({name: hashlib.sha256(b"secret").hexdigest()}))
    with pytest.raises(BundlePathError):
        load_bundle(bundle)


def test_a_symlink_or_folder_in_place_of_a_file_is_a_path_error(bundle: Path) -> None:
    (bundle / "README.md").rename(bundle.parent / "elsewhere")
    (bundle / "README.md").symlink_to(bundle.parent / "elsewhere")
    with pytest.raises(BundlePathError, match=r"README\.md is not a regular file"):
        load_bundle(bundle)
    (bundle / "README.md").unlink()
    (bundle / "README.md").mkdir()
    with pytest.raises(BundlePathError, match=r"README\.md is not a regular file"):
        load_bundle(bundle)


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_calibration_is_refused_and_never_unpickled(bundle: Path, tmp_path: Path) -> None:
    forged = {"mean": np.array([Payload(tmp_path / "pwned")]), "whitening": np.eye(1), "calibration_scores": np.ones(1)}
    np.savez(tmp_path / "forged.npz", **forged)
    replace(bundle, "calibration.npz", (tmp_path / "forged.npz").read_bytes())
    with pytest.raises(BundleError, match="cannot be used"):
        load_bundle(bundle)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("contents", [b"", b"words", b"PK\x03\x04 and then nothing"], ids=["empty", "text", "zip"])
def test_calibration_that_is_no_archive_is_a_bundle_error(bundle: Path, contents: bytes) -> None:
    replace(bundle, "calibration.npz", contents)
    with pytest.raises(BundleError, match="cannot be used"):
        load_bundle(bundle)


def test_an_existing_bundle_is_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path / "demo", "first", {**FILES, "extra.txt": b"old"})
    assert write(tmp_path / "demo", "second").name == "second"
    assert load_bundle(tmp_path / "demo").name == "second"
    assert not (tmp_path / "demo" / "extra.txt").exists()


def test_a_folder_that_is_no_bundle_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(BundleError, match="not a bundle"):
        write(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    assert [path.name for path in tmp_path.rglob("*")] == ["thesis", "chapter.txt"]


def test_a_bundle_that_cannot_be_read_back_leaves_the_old_one(bundle: Path) -> None:
    with pytest.raises(BundleMissingFileError):
        write(bundle, "worse", {"sampler.onnx": b""})
    assert load_bundle(bundle).name == "demo"


def test_bundles_are_found_by_shipped_name_or_path(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ddaebm.model.bundle, "SHIPPED", tmp_path)
    assert find_bundle("demo") == bundle
    assert find_bundle(str(bundle)) == bundle
    for name in ("nothing", str(tmp_path), ""):
        with pytest.raises(BundleMissingFileError, match="demo"):
            find_bundle(name)
    monkeypatch.setattr(ddaebm.model.bundle, "SHIPPED", tmp_path / "nowhere")
    with pytest.raises(BundleMissingFileError, match="none"):
        find_bundle("demo")


def test_a_bundle_replaces_bundles_and_empty_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)
    (tmp_path / "link").symlink_to("empty")
    for name in ("empty", "link", "disk", "new/deep"):
        for _ in range(2):
            assert load_bundle(write(tmp_path / name).path).name == "demo"
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    (tmp_path / "file").touch()
    for name, words in (("photos", "is not empty and not a bundle"), ("file", "is a file"), ("file/deep", "file")):
        with pytest.raises((BundleError, OSError), match=words):
            write(tmp_path / name)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "-a", "a b", "a\nb", "a\u00e9", "\ud800", "a" * 101])
def test_a_name_that_cannot_be_a_part_of_a_url_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="a bundle cannot be named"):
        write(tmp_path / "other", name)
    assert not (tmp_path / "other").exists()
    edit(bundle, lambda m: m.update(name=name))
    with pytest.raises(BundleError, match="name"):
        load_bundle(bundle)


@pytest.mark.parametrize("of", [{}, {"energy.onnx": None}, {"README.md": "0" * 64}])
def test_a_calibration_that_names_no_networks_is_refused(bundle: Path, of: dict[str, Any]) -> None:
    edit(bundle, lambda m: m["calibration"].update(of=of))
    with pytest.raises(BundleError):
        load_bundle(bundle)


def test_a_shipped_name_is_not_shadowed_by_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = find_bundle("fashion-mnist")
    write(tmp_path / "fashion-mnist")
    monkeypatch.chdir(tmp_path)
    assert find_bundle("fashion-mnist") == shipped
    assert find_bundle("./fashion-mnist").resolve() == tmp_path / "fashion-mnist"
