"""Numbers for how complex an image is, against their definitions."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ddaebm.model.ood.complexity import complexity, distinct_runs, equal_neighbours, fine_detail

Images = NDArray[np.uint8]


def noise(shape: tuple[int, ...], levels: int = 256) -> Images:
    return np.random.default_rng(0).integers(0, levels, shape, dtype=np.uint8)


def test_fine_detail_is_the_mean_diagonal_difference_of_four_neighbours() -> None:
    images = noise((3, 5, 6, 3))
    x = images.astype(float)
    for i in range(3):
        found = [
            abs(x[i, y, z, c] - x[i, y + 1, z, c] - x[i, y, z + 1, c] + x[i, y + 1, z + 1, c])
            for y in range(4) for z in range(5) for c in range(3)
        ]  # fmt: skip
        assert fine_detail(images)[i] == pytest.approx(np.log(np.mean(found) + 0.1))
    edge = np.zeros((1, 8, 8, 1), np.uint8)
    edge[:, 3:] = 255  # along an axis
    np.testing.assert_allclose(fine_detail(np.concatenate([edge, edge // 255 * 9, 0 * edge])), np.log(0.1))


@pytest.mark.parametrize("channels", [1, 3])
def test_equal_neighbours_are_counted_in_all_channels_at_once(channels: int) -> None:
    images = noise((3, 5, 7, channels), levels=3)
    for image, found in zip(images, equal_neighbours(images), strict=True):
        below = np.mean([(image[y, x] == image[y + 1, x]).all() for y in range(4) for x in range(7)])
        beside = np.mean([(image[y, x] == image[y, x + 1]).all() for y in range(5) for x in range(6)])
        assert found == pytest.approx(np.log((below + beside) / 2 + 0.01))


@pytest.mark.parametrize(("channels", "levels"), [(1, 2), (1, 256), (3, 2)])
def test_distinct_runs_are_those_of_a_set(channels: int, levels: int) -> None:
    images = noise((4, 6, 9, channels), levels)
    for image, found in zip(images, distinct_runs(images), strict=True):
        runs = [row[x : x + 4].tobytes() for row in image for x in range(6)]
        assert found == pytest.approx(np.log(len(set(runs)) / len(runs)))


def test_what_repeats_has_fewer_runs_and_what_is_flat_has_equal_neighbours() -> None:
    images = noise((1, 16, 16, 3))
    mirrored = np.concatenate([images[:, :8], images[:, 7::-1]], 1)
    framed = images.copy()
    framed[:, :4] = framed[:, -4:] = 128
    plain, twice, flat = complexity(np.concatenate([images, mirrored, framed]))
    assert twice[2] == pytest.approx(plain[2] - np.log(2))
    assert flat[1] > plain[1] + 3
    assert plain[[2, 3]].tolist() == [0, 0]


def test_rows_and_columns_are_told_apart_and_a_row_does_not_depend_on_the_batch() -> None:
    images = noise((5, 12, 12, 1), levels=4)
    images[:, 6:] = images[:, :6]
    found, turned = complexity(images), complexity(images.transpose(0, 2, 1, 3).copy())
    np.testing.assert_array_equal(found[:, 2], turned[:, 3])
    np.testing.assert_array_equal(found[:, 3], turned[:, 2])
    assert (found[:, 2] < found[:, 3]).all()
    for i in range(5):
        np.testing.assert_array_equal(complexity(images[i : i + 1])[0], found[i])


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 3, 2, 3), (1, 4, 40, 1)])
def test_small_images_and_black_ones_have_finite_numbers(shape: tuple[int, ...]) -> None:
    with np.errstate(all="raise"):
        for images in (noise(shape), np.zeros(shape, np.uint8)):
            if min(shape[1:3]) > 1:
                assert np.isfinite(complexity(images)).all()
            assert np.isfinite(distinct_runs(images)).all()
