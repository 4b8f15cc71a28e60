"""The counter-based generator: known answers, distribution, and independence of the rest of the batch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ddaebm.model.noise import (
    MAX_SEED,
    image_seeds,
    normal_streams,
    normals,
    permutation,
    philox,
    random_words,
    seeds_at,
)

SEEDS = st.integers(0, MAX_SEED)

# Salmon et al. 2011, the authors' known-answer vectors: (counter, key, result).
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]

GOLDEN_NORMALS = [
    [1.136367321, -0.675882995, 1.2405917644, 0.2242511361, 1.0219787359],
    [1.6219786405, -0.144143804, 0.9526674747, -1.180069684, -1.799448728],
]
GOLDEN_WORDS = [8293824096736846, 6306053545826517, 7398813368384624]
GOLDEN_PERMUTATION = [4, 7, 3, 2, 5, 6, 0, 8, 9, 1]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter: list[int], key: list[int], result: list[int]) -> None:
    for make in (lambda v: np.array([v], dtype=np.int64), lambda v: torch.tensor([v])):
        words = philox(*(make(word) for word in (*counter, *key)))
        assert [int(word[0]) for word in words] == result


def test_numpy_and_torch_agree_to_the_last_bit() -> None:
    seeds = np.array([0, 1, 2**31, 2**32 + 5, MAX_SEED], dtype=np.int64)
    ours, theirs = normals(seeds, 20_001, stream=3), normals(torch.from_numpy(seeds), 20_001, stream=3)
    assert ours.dtype == np.float32
    assert theirs.dtype == torch.float32
    np.testing.assert_array_equal(ours.view(np.int32), theirs.numpy().view(np.int32))


def test_first_values_are_golden() -> None:
    """Changing these changes the image of every seed that a user has kept."""
    draws = normals(np.array([0, 12345], dtype=np.int64), 5, stream=1)
    np.testing.assert_allclose(draws, GOLDEN_NORMALS, rtol=1e-6)
    assert random_words(7, 3).tolist() == GOLDEN_WORDS
    assert image_seeds(7, 3).tolist() == [7, *GOLDEN_WORDS[1:]]
    assert permutation(10, 20_240_302).tolist() == GOLDEN_PERMUTATION


def test_draws_are_standard_normal() -> None:
    draws = normals(np.arange(200, dtype=np.int64), 1000).astype(np.float64)
    assert stats.kstest(draws.ravel(), "norm").pvalue > 1e-3
    for moment, expected, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert (draws**moment).mean() == pytest.approx(expected, abs=5 * np.sqrt(spread / draws.size))
    # Neighbouring numbers, which share a Box–Muller pair or a block, are uncorrelated; so are neighbouring seeds.
    for lag in (1, 2, 3, 4):
        assert abs((draws[:, :-lag] * draws[:, lag:]).mean()) < 5 / np.sqrt(draws.size)
    assert abs((draws[:-1] * draws[1:]).mean()) < 5 / np.sqrt(draws.size)


@given(st.lists(SEEDS, min_size=1, max_size=5), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_a_draw_depends_on_its_own_seed_alone(seeds: list[int], count: int) -> None:
    batch = normals(np.array(seeds, dtype=np.int64), count)
    for row, seed in zip(batch, seeds, strict=True):
        alone = normals(np.array([seed], dtype=np.int64), count + 7)[0, :count]
        np.testing.assert_array_equal(row, alone)


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_several_streams_at_once_are_those_of_one_at_a_time(make: Callable[[Any], Any]) -> None:
    seeds = make(np.arange(19, dtype=np.int64) * 2**40)  # more than are computed at a time
    counts = {0: 784, 3: 5, 1: 0}
    streams = normal_streams(seeds, counts)
    for (stream, count), draws in zip(counts.items(), streams, strict=True):
        assert draws.shape == (19, count)
        np.testing.assert_array_equal(draws, normals(seeds, count, stream))
        np.testing.assert_array_equal(draws[17:], normals(seeds[17:], count, stream))


def test_streams_and_both_halves_of_a_seed_matter() -> None:
    seeds = np.array([5, 5 + 2**32, 5 + 2**40], dtype=np.int64)
    rows = np.concatenate([normals(seeds, 8, stream) for stream in (0, 1, 2)])
    assert len({row.tobytes() for row in rows}) == 9


def test_no_draws_are_an_empty_array() -> None:
    assert normals(np.array([1, 2], dtype=np.int64), 0).shape == (2, 0)


@given(SEEDS, st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_image_seeds_start_with_the_seed_and_are_distinct_valid_seeds(seed: int, count: int) -> None:
    seeds = image_seeds(seed, count)
    assert seeds[0] == seed
    assert len(set(seeds.tolist())) == count
    assert seeds.min() >= 0
    assert seeds.max() <= MAX_SEED
    np.testing.assert_array_equal(seeds, image_seeds(seed, count + 5)[:count])


def test_neighbouring_requests_share_no_image() -> None:
    requests = [image_seeds(seed, 64)[1:].tolist() for seed in range(50)]
    assert len({seed for request in requests for seed in request}) == 50 * 63


@given(SEEDS, st.integers(0, 500))
@settings(max_examples=50, deadline=None)
def test_permutation_holds_each_index_once(seed: int, count: int) -> None:
    assert sorted(permutation(count, seed).tolist()) == list(range(count))


def test_permutations_place_every_index_everywhere() -> None:
    places = np.stack([permutation(5, seed) for seed in range(2000)])
    counts = np.array([np.bincount(column, minlength=5) for column in places.T])
    assert stats.chisquare(counts.ravel(), ddof=8).pvalue > 1e-4


def test_seeds_at_any_indices_are_those_of_the_whole_set() -> None:
    whole = image_seeds(7, 1000)
    indices = np.array([999, 0, 3, 500])
    np.testing.assert_array_equal(seeds_at(7, indices), whole[indices])
    assert seeds_at(7, np.array([10**12])).dtype == np.int64
