"""Every form of image that the Python API accepts, and every wrong one."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ddaebm
from ddaebm.model.images.encode import encode_png
from tests.test_api import DIGIT, FASHION, pixels_of


@pytest.fixture(scope="module")
def model() -> Iterator[ddaebm.Model]:
    with ddaebm.load("fashion-mnist", device="cpu") as loaded:
        yield loaded


FORMS: dict[str, Callable[[], Any]] = {
    "one grey array": lambda: pixels_of(DIGIT),
    "one array with a channel": lambda: pixels_of(DIGIT)[..., None],
    "a batch without channels": lambda: pixels_of(DIGIT)[None],
    "a batch": lambda: pixels_of(DIGIT)[None, ..., None],
    "colours": lambda: np.repeat(pixels_of(DIGIT)[..., None], 3, axis=2),
    "a batch of colours": lambda: np.repeat(pixels_of(DIGIT)[None, ..., None], 3, axis=3),
    "Fortran order": lambda: np.asfortranarray(pixels_of(DIGIT)),
    "a view": lambda: np.flip(np.flip(pixels_of(DIGIT), 1).copy(), 1),
    "read-only": lambda: np.frombuffer(pixels_of(DIGIT).tobytes(), np.uint8).reshape(28, 28),
    "PIL": lambda: Image.open(DIGIT),
    "PIL in colour": lambda: Image.open(DIGIT).convert("RGB"),
    "PIL with alpha": lambda: Image.open(DIGIT).convert("LA"),
    "bytes": DIGIT.read_bytes,
    "a Path": lambda: DIGIT,
    "a str": lambda: str(DIGIT),
    "a list of an array": lambda: [pixels_of(DIGIT)],
    "a tuple of PIL": lambda: (Image.open(DIGIT),),
    "a generator": lambda: (path for path in [DIGIT]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_scores_alike(model: ddaebm.Model, form: str) -> None:
    expected = model.score(DIGIT)
    result = model.score(FORMS[form]())
    np.testing.assert_array_equal(result.ood_score, expected.ood_score)
    np.testing.assert_array_equal(model.heatmap(FORMS[form]()), model.heatmap(DIGIT))
    assert not result.resized.any()


def test_torch_tensors_are_taken_and_other_places_of_channels_are_named(model: ddaebm.Model) -> None:
    torch = pytest.importorskip("torch")
    pixels = pixels_of(DIGIT)
    np.testing.assert_array_equal(model.score(torch.from_numpy(pixels.copy())).ood_score, model.score(pixels).ood_score)
    with pytest.raises(ddaebm.InputError, match="channels last"):
        model.score(torch.zeros(2, 3, 28, 28, dtype=torch.uint8))
    with pytest.raises(ddaebm.InputError, match=r"cannot convert a torch\.Tensor"):
        model.score(torch.zeros(28, 28, requires_grad=True))


def test_folders_and_mixed_lists_keep_their_order(model: ddaebm.Model, tmp_path: Path) -> None:
    for i in range(70):
        (tmp_path / f"{i:03d}.png").write_bytes((DIGIT if i % 3 else FASHION).read_bytes())
    result = model.score([tmp_path, pixels_of(FASHION), Image.open(DIGIT)])
    assert len(result) == 72
    assert result.names[:2] == (str(tmp_path / "000.png"), str(tmp_path / "001.png"))
    assert result.is_ood().tolist() == [i % 3 != 0 for i in range(70)] + [False, True]


def test_another_size_is_resized_and_said_so(model: ddaebm.Model) -> None:
    large = Image.open(DIGIT).resize((56, 56), Image.Resampling.NEAREST)
    result = model.score([large, DIGIT])
    assert result.resized.tolist() == [True, False]
    np.testing.assert_array_equal(model.score(np.asarray(large)).ood_score, result.ood_score[:1])


BATCH = np.zeros((2, 28, 28, 1), np.uint8)
WRONG: dict[str, tuple[Any, str]] = {
    "an empty list": ([], "no images"),
    "an empty batch": (BATCH[:0], "no images"),
    "no pixels": (BATCH[:, :0], "no images"),
    "numbers": ([1, 2], "image 0 of the list is a int"),
    "nested lists": ([[1, 2], [3, 4]], "image 0 of the list is a list"),
    "floats": (BATCH / 255, "(x * 255).round()"),
    "booleans": (BATCH > 0, "x.astype('uint8') * 255"),
    "16 bits": (BATCH.astype(np.uint16), "must be uint8"),
    "objects": (np.array([None, None]), "must be uint8"),
    "channels first": (BATCH.transpose(0, 3, 1, 2), "transpose(0, 2, 3, 1)"),
    "alpha": (np.repeat(BATCH, 4, 3), "images[..., :3]"),
    "one axis": (BATCH.reshape(-1), "must have"),
    "five axes": (BATCH[None], "must have"),
    "a batch in a list": ([BATCH], "one image is"),
    "None": (None, "cannot be a NoneType"),
    "a dict": ({"a": BATCH}, "cannot be a dict"),
    "a set": ({"a"}, "cannot be a set"),
    "a number": (3, "cannot be a int"),
    "a later wrong one": ([DIGIT, None], "image 1 of the list is a NoneType"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_images_are_named(model: ddaebm.Model, case: str) -> None:
    wrong, words = WRONG[case]
    for call in (model.score, model.heatmap):
        with pytest.raises(ddaebm.InputError) as error:
            call(wrong)
        assert words in str(error.value)
        assert "\n" not in str(error.value)


def test_images_that_cannot_be_read_are_counted_and_named(model: ddaebm.Model, tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"broken-{i}.png").write_bytes(b"no image")
    with pytest.raises(ddaebm.ImageError, match=r"^5 of 6 images cannot be read: .*broken-0.*; and 2 more"):
        model.score([tmp_path, DIGIT])
    for call in (model.score, model.heatmap):
        with pytest.raises(ddaebm.ImageError, match="no known range"):
            call(Image.new("F", (28, 28)))
        with pytest.raises(ddaebm.ImageError, match="over the limit"):
            call(np.zeros((10_001, 10_000), np.uint8))
        with pytest.raises(ddaebm.ImageError, match="over the limit"):
            call(Image.new("L", (10_001, 10_000)))
        with pytest.raises(ddaebm.DataError, match="no such file"):
            call("nowhere.png")
        with pytest.raises(ddaebm.DataError, match="empty"):
            call("")


def test_an_image_over_pillow_s_own_limit_is_too_large(
    model: ddaebm.Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A program that uses ours may have set the limit, or made the warning an error as this suite does."""
    (tmp_path / "large.png").write_bytes(encode_png(np.zeros((300, 300, 1), np.uint8)))
    for limit in (60_000, 30_000):  # warned about above it, refused above twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ddaebm.ImageError, match=r"90000 pixels\) exceeds limit"):
            model.score(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60_000)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        assert len(model.score(tmp_path / "large.png")) == 1
