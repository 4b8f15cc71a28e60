"""Counter-based random numbers: each normal is a pure function of (seed, stream, index).

Uses Philox4x32-10 (Salmon et al. 2011, *Parallel Random Numbers: As Easy as 1, 2, 3*) and the Box–Muller transform.
The noise of a seed does not depend on the other seeds of its batch. The same code runs on NumPy and torch, because
int64 arithmetic overflows in the same way in both.
"""

import math
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.errors import InputError

MAX_SEED = 2**53 - 1  # the largest integer that every JSON parser reads exactly

_MASK = 0xFFFFFFFF
# Multipliers and key increments of Philox. Products with the first multiplier can overflow int64. Their 64 bits are
# still correct, because masking and shifting treat them as unsigned.
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_CACHED_ROWS = 8  # seeds computed at a time on a CPU; intermediate results of more do not fit into a core's cache

_SEED_STREAM = 0xFFFFFFFF  # reserved for `random_words`; `normals` does not use it


def _namespace(array: Any) -> ModuleType:
    """Return the module of `array`: numpy, or torch, which is not imported here but by whoever made the tensor.

    Raises:
        InputError: `array` is neither an array nor a tensor.
    """
    if isinstance(array, np.ndarray):
        return np
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(array, torch.Tensor):
        raise InputError(f"seeds must be an int64 array or tensor, not a {type(array).__name__}")
    return torch


def philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-10 of counter words c0..c3 with key words k0, k1.

    All are int64 arrays of one shape with values in 0..2^32-1; so are the four output words.
    """
    xp = _namespace(c0)
    (w0, w2), (w1, w3) = _philox(xp.stack([c0, c2]), xp.stack([c1, c3]), xp.stack([k0, k1]))
    return w0, w1, w2, w3


def _philox(even: Any, odd: Any, key: Any) -> tuple[Any, Any]:
    """`philox` with words stacked in pairs: c0 and c2, c1 and c3, k0 and k1.

    Stacking halves the number of operations, which is faster for few seeds.
    """
    xp = _namespace(even)
    # Derive the constants from the key. Python numbers would be copied to the GPU, which CUDA graphs do not allow.
    zero = key[0] * 0
    factors, steps = xp.stack([zero + _M0, zero + _M1]), xp.stack([zero + _W0, zero + _W1])
    for _ in range(_ROUNDS):
        high = _swap(even * factors)
        low = high & _MASK
        high >>= 32
        high &= _MASK
        high ^= odd
        high ^= key
        even, odd = high, low
        key = (key + steps) & _MASK
    return even, odd


def _swap(pair: Any) -> Any:
    """Swap the two halves of a stacked pair (2, ...)."""
    return pair[::-1] if isinstance(pair, np.ndarray) else pair.flip(0)


def normals(seeds: Any, count: int, stream: int = 0) -> Any:
    """Standard normal numbers, float32 (B, count), on the device of `seeds`.

    Args:
        seeds: int64 (B,), NumPy or torch, each in 0..MAX_SEED.
        count: Numbers per seed.
        stream: Different streams of a seed are independent.

    Raises:
        InputError: `seeds` is neither an array nor a tensor.
    """
    return normal_streams(seeds, {stream: count})[0]


def normal_streams(seeds: Any, counts: Mapping[int, int]) -> list[Any]:
    """Compute `normals` of several streams at once, in little more time than one stream takes.

    Args:
        counts: Numbers per seed, by stream.

    Returns:
        One array (B, count) for each stream, in the order of `counts`.
    """
    xp = _namespace(seeds)
    place = {} if xp is np else {"device": seeds.device}
    blocks = [-(-count // 4) for count in counts.values()]
    index = xp.concatenate([xp.arange(length, dtype=xp.int64, **place) for length in blocks])
    stream = xp.concatenate([xp.full((n,), s, dtype=xp.int64, **place) for s, n in zip(counts, blocks, strict=True)])
    rows = _CACHED_ROWS if xp is np else max(1, len(seeds))
    parts = [_normals(seeds[start : start + rows], index, stream) for start in range(0, max(1, len(seeds)), rows)]
    draws = xp.concatenate(parts)
    starts = np.cumsum([0, *blocks[:-1]]) * 4
    return [draws[:, start : start + count] for start, count in zip(starts.tolist(), counts.values(), strict=True)]


def _normals(seeds: Any, index: Any, stream: Any) -> Any:
    """Compute normals (B, 4n), four for each block. `index` and `stream`, both (n,), identify the blocks."""
    xp = _namespace(seeds)
    key = seeds[:, None]
    even = xp.stack([key * 0 + index, key * 0 + index * 0])
    odd = xp.stack([key * 0 + stream, even[1]])
    words = _philox(even, odd, xp.stack([key & _MASK, key >> 32]))
    # Use double precision, so that platforms whose log or cos differ in the last bit give the same float32.
    u, v = (((word.astype(np.float64) if xp is np else word.double()) + 0.5) * 2.0**-32 for word in words)
    radius, angle = xp.sqrt(-2 * xp.log(u)), 2 * math.pi * v
    (x0, x1), (y0, y1) = radius * xp.cos(angle), radius * xp.sin(angle)
    draws = xp.stack([x0, y0, x1, y1], -1).reshape(len(seeds), -1)
    return draws.astype(np.float32) if xp is np else draws.float()


def random_words(seed: int, count: int) -> NDArray[np.int64]:
    """The first `count` uniform random integers of a seed, in 0..MAX_SEED, (count,)."""
    return _words(seed, np.arange(count, dtype=np.int64))


def random_word(seed: int, index: int) -> int:
    """The element of `random_words` at `index`. The cost does not depend on `index`."""
    return int(_words(seed, np.array([index], dtype=np.int64))[0])


def _words(seed: int, index: NDArray[np.int64]) -> NDArray[np.int64]:
    key = np.full_like(index, seed)
    high, low, _, _ = philox(index, index * 0 + _SEED_STREAM, index * 0, index * 0, key & _MASK, key >> 32)
    words: NDArray[np.int64] = ((high << 32) | low) & MAX_SEED
    return words


def image_seeds(seed: int, count: int) -> NDArray[np.int64]:
    """Seeds of the images of one request, (count,): the first is `seed`, the others are hashes of (seed, index).

    Because of the hash, requests with neighbouring seeds have no image in common.
    """
    return seeds_at(seed, np.arange(count, dtype=np.int64))


def seeds_at(seed: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """The elements of `image_seeds` at `indices` (n,). The cost depends on n alone."""
    seeds = np.full_like(indices, seed)
    others = indices != 0
    if others.any():
        seeds[others] = _words(seed, indices[others])
    return seeds


def permutation(count: int, seed: int) -> NDArray[np.int64]:
    """A random order of 0..count-1, (count,). It is the same on every platform and with every release of NumPy."""
    return np.argsort(random_words(seed, count), kind="stable")
