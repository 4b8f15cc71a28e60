"""The Python API on the shipped bundle: what comes out, every form of input, every wrong one."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import ddaebm
from ddaebm.model.bundle import load_bundle
from ddaebm.model.noise import normals
from ddaebm.model.sampling import draw_noise

FIXTURES = Path(__file__).parent / "fixtures"
FASHION, DIGIT = FIXTURES / "fashion.png", FIXTURES / "digit.png"


@pytest.fixture(scope="module")
def model() -> Iterator[ddaebm.Model]:
    with ddaebm.load("fashion-mnist", device="cpu") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def images(model: ddaebm.Model) -> NDArray[np.uint8]:
    return model.sample(20, seed=1)


def pixels_of(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path))


def python(code: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_is_quick_and_loads_neither_numpy_nor_torch(tmp_path: Path) -> None:
    code = (
        "import sys, ddaebm; print([name for name in ('numpy', 'torch', 'PIL', 'onnxruntime') if name in sys.modules])"
    )
    assert python(code, tmp_path) == "[]\n"
    code = "import time; t = time.process_time(); import ddaebm; print(time.process_time() - t)"
    assert min(float(python(code, tmp_path)) for _ in range(5)) < 0.05


def test_importing_sets_no_state_of_the_process(tmp_path: Path) -> None:
    state = "(Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, warnings.filters[:], socket.getdefaulttimeout())"
    code = (
        f"import socket, warnings; from PIL import Image, ImageFile; import numpy; before = {state}; import ddaebm;"
        f" ddaebm.load('fashion-mnist').score({str(FASHION)!r}); assert before == {state}, {state}"
    )
    python(code, tmp_path)


def test_every_public_name_is_there_and_no_other() -> None:
    assert set(ddaebm.__all__) <= set(dir(ddaebm))
    assert all(getattr(ddaebm, name) is not None for name in ddaebm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ddaebm.nothing  # type: ignore[attr-defined]


def test_a_model_says_what_it_is(model: ddaebm.Model) -> None:
    assert (model.name, model.shape, model.num_steps, model.calibration_size) == ("fashion-mnist", (28, 28, 1), 4, 5000)
    assert model.digest == load_bundle(model.bundle.path).digest
    assert repr(model) == f"<ddaebm.Model 'fashion-mnist' {model.digest[:12]}, 28x28x1, onnxruntime-cpu>"
    low, high = model.false_alarm_interval(0.05)
    assert 0.04 < low < 0.05 < high < 0.06


def test_samples_are_those_of_their_seeds(model: ddaebm.Model) -> None:
    made = model.sample(130, seed=7)  # more than two batches
    assert (made.shape, made.dtype) == ((130, 28, 28, 1), np.uint8)
    np.testing.assert_array_equal(model.sample(130, seed=7), made)
    seeds = ddaebm.image_seeds(7, 130)
    np.testing.assert_array_equal(model.sample(seeds=seeds[100:103]), made[100:103])
    np.testing.assert_array_equal(model.sample(seeds=[7]), made[:1])
    assert model.sample().shape == (1, 28, 28, 1)
    assert not (model.sample() == model.sample()).all()  # random where no seed is given


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10-jpeg"])
def test_a_callback_sees_every_step_of_the_same_images(name: str) -> None:
    steps: list[tuple[int, NDArray[np.float32], NDArray[np.float32]]] = []

    def keep(k: int, x_t: NDArray[np.float32], x0_hat: NDArray[np.float32]) -> None:
        steps.append((k, x_t.copy(), x0_hat.copy()))
        x_t[:] = x0_hat[:] = 0  # a callback may do what it likes with its arrays

    with ddaebm.load(name, device="cpu") as model:
        plain = model.sample(18, seed=3)
        made = model.sample(18, seed=3, callback=keep)
    assert np.abs(made.astype(int) - plain).max() <= 1
    assert [k for k, _, _ in steps] == [3, 2, 1, 0]
    for _, x_t, x0_hat in steps:
        assert x_t.shape == x0_hat.shape == plain.shape
        assert x_t.dtype == x0_hat.dtype == np.float32
        assert np.abs(x0_hat).max() <= 1.001
    final = steps[-1][1]
    np.testing.assert_array_equal(np.clip(np.round((final + 1) * 127.5), 0, 255), made)
    noise = [np.abs(x_t - plain / 127.5 + 1).mean() for _, x_t, _ in steps]
    assert noise == sorted(noise, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"n": [1, 2]}, "seeds=[1, 2]"), ({"n": 0}, "n must be"), ({"n": -3}, "n must be"), ({"n": 1.5}, "n must be"),
     ({"n": "3"}, "n must be"), ({"n": True}, "n must be"), ({"n": 10**9}, "at a time"), ({"n": 10**30}, "at a time"),
     ({"n": 200_000, "callback": print}, "at a time"), ({"seed": -1}, "2**53"), ({"seed": 2**53}, "2**53"),
     ({"seed": 1.0}, "whole numbers"), ({"seed": "a"}, "whole numbers"), ({"seed": True}, "whole number"),
     ({"seeds": []}, "at least one"), ({"seeds": [[1, 2]]}, "shape (1, 2)"), ({"seeds": 3}, "list of whole numbers"),
     ({"seeds": [1.5]}, "whole numbers"), ({"seeds": [2**70]}, "2**53"), ({"seeds": [-1]}, "2**53"),
     ({"seeds": [True]}, "whole numbers"), ({"seeds": ["a"]}, "whole numbers"), ({"seeds": [[1], [1, 2]]}, "whole"),
     ({"seeds": [1], "n": 1}, "pass either"), ({"seeds": [1], "seed": 1}, "pass either")],
)  # fmt: skip
def test_wrong_arguments_of_sample_are_named(model: ddaebm.Model, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ddaebm.InputError) as error:
        model.sample(**arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_seeds_that_are_no_array_are_named_in_the_engine_too(model: ddaebm.Model) -> None:
    seeds: Any = [1, 2]
    for call in (model.engine.sample, lambda s: draw_noise(model.bundle.config, s), lambda s: normals(s, 3)):
        with pytest.raises(ddaebm.InputError, match="array or tensor, not a list"):
            call(seeds)


def test_scores_are_arrays_in_the_order_given(model: ddaebm.Model, images: NDArray[np.uint8]) -> None:
    result = model.score(images)
    assert len(result) == 20
    assert (result.energies.shape, result.energies.dtype) == ((20, 4), np.float32)
    assert result.energy_quantiles.shape == (20, 4)
    assert (result.ood_score.shape, result.p_value.shape, result.resized.shape) == ((20,), (20,), (20,))
    assert result.names == tuple(map(str, range(20)))
    direct = model.engine.score(images)
    np.testing.assert_array_equal(result.energies, direct.energies)
    np.testing.assert_array_equal(result.ood_score, direct.ood_score)
    np.testing.assert_array_equal(result.p_value, direct.p_value)
    np.testing.assert_array_equal(result.is_ood(0.1), result.p_value <= 0.1)
    assert repr(result).startswith("<ddaebm.ScoreResult of 20 images, p_value 0.0")


def test_a_digit_is_out_of_distribution_and_clothes_are_in(model: ddaebm.Model) -> None:
    result = model.score([FASHION, DIGIT])
    assert result.is_ood().tolist() == [False, True]
    assert result.select(fdr=0.1).tolist() == [False, True]
    assert result.names == (str(FASHION), str(DIGIT))


@pytest.mark.parametrize(("rate", "words"), [(0.0, "alpha"), (1e-9, "alpha"), (1.0, "alpha"), (-1, "alpha"),
                                             (float("nan"), "alpha"), ("0.05", "alpha"), (None, "alpha")])  # fmt: skip
def test_a_rate_that_can_never_fire_is_refused(model: ddaebm.Model, rate: Any, words: str) -> None:
    result = model.score(FASHION)
    with pytest.raises(ddaebm.InputError, match=words):
        result.is_ood(rate)
    with pytest.raises(ddaebm.InputError, match="fdr"):
        result.select(rate)


def test_heat_is_at_the_digit_that_was_pasted_in(model: ddaebm.Model) -> None:
    pasted = pixels_of(FASHION).copy()
    pasted[2:14, 2:14] = pixels_of(DIGIT)[8:20, 8:20]
    plain, hot = model.heatmap([pixels_of(FASHION), pasted])
    assert (plain.shape, plain.dtype) == ((28, 28), np.float32)
    assert hot[2:14, 2:14].max() == hot.max() > plain.max()


def test_a_saved_model_is_the_same_bundle(model: ddaebm.Model, images: NDArray[np.uint8], tmp_path: Path) -> None:
    out = model.save(tmp_path / "deep" / "copy")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in model.bundle.path.iterdir()
    }
    with ddaebm.load(out) as again:
        assert again.digest == model.digest
        np.testing.assert_array_equal(again.sample(20, seed=1), images)
        again.save(out)  # onto itself
        model.save(str(out))  # and over a bundle
    assert ddaebm.load(out).digest == model.digest
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(ddaebm.BundleError, match="not a bundle"):
        model.save(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_bundle_that_changed_on_disk_is_not_saved(model: ddaebm.Model, tmp_path: Path) -> None:
    copy = model.save(tmp_path / "copy")
    with ddaebm.load(copy) as loaded:
        manifest = json.loads((copy / "bundle.json").read_text()) | {"name": "other"}
        (copy / "bundle.json").write_text(json.dumps(manifest))
        with pytest.raises(ddaebm.BundleError, match=r"bundle\.json is not the file"):
            loaded.save(tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_a_closed_model_says_so(tmp_path: Path) -> None:
    with ddaebm.load() as model:
        pass
    assert repr(model).endswith("closed>")
    for call in (model.sample, lambda: model.score(DIGIT), lambda: model.heatmap(DIGIT), lambda: model.backend):
        with pytest.raises(ddaebm.InputError, match="closed"):
            call()
    assert model.save(tmp_path / "copy").is_dir()  # needs no engine


def test_threads_share_a_model(model: ddaebm.Model, images: NDArray[np.uint8]) -> None:
    expected = model.score(images).ood_score

    def work(i: int) -> bool:
        if i % 2:
            return bool((model.sample(20, seed=1) == images).all())
        return bool((model.score(images).ood_score == expected).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(40)))


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [({"bundle": "nobody"}, "BundleError", "shipped"), ({"device": "tpu"}, "ConfigError", "device"),
     ({"backend": "jax"}, "ConfigError", "onnx, torch"), ({"bundle": ""}, "BundleError", "no bundle ''")],
)  # fmt: skip
def test_what_cannot_be_loaded_is_named(arguments: dict[str, Any], kind: str, words: str) -> None:
    with pytest.raises(getattr(ddaebm, kind), match=words):
        ddaebm.load(**arguments)


def test_the_torch_backend_has_the_same_api(debug_bundle: Path) -> None:
    with (
        ddaebm.load(debug_bundle, device="cpu") as onnx,
        ddaebm.load(debug_bundle, backend="torch", device="cpu") as torch,
    ):
        ours, theirs = torch.sample(5, seed=1), onnx.sample(5, seed=1)
        assert np.abs(ours.astype(int) - theirs).max() <= 1
        np.testing.assert_allclose(torch.score(theirs).ood_score, onnx.score(theirs).ood_score, rtol=1e-3)
        assert torch.heatmap(theirs).shape == (5, 16, 16)
        with pytest.raises(ddaebm.InputError, match="backend='onnx'"):
            torch.sample(1, callback=print)
