"""Counter-based normal numbers: each is a pure function of (seed, stream, index).

Philox4x32-10 (Salmon et al. 2011, *Parallel Random Numbers: As Easy as 1, 2, 3*) and Box–Muller.
A seed's noise therefore depends on nothing that shares its batch, and one code serves numpy and
torch: int64 arithmetic wraps alike in both.
"""

import math
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.errors import InputError

MAX_SEED = 2**53 - 1  # what JSON carries exactly everywhere

_MASK = 0xFFFFFFFF
# Philox's multipliers and key increments; the first multiplier is above 2^31, so products wrap in
# int64. The 64 bits are right all the same: masking and shifting read them as unsigned.
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_CACHED_ROWS = 8  # seeds at a time on a CPU: with more, what one operation hands to the next leaves a core's cache

_SEED_STREAM = 0xFFFFFFFF  # no draw of `normals` uses it


def _namespace(array: Any) -> ModuleType:
    """numpy, or torch where the caller already holds a tensor (never imported here).

    Raises:
        InputError: neither an array nor a tensor.
    """
    if isinstance(array, np.ndarray):
        return np
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(array, torch.Tensor):
        raise InputError(f"seeds must be an int64 array or tensor, not a {type(array).__name__}")
    return torch


def philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-10 of counter words c0..c3, of one shape, under key words k0, k1: int64 arrays in 0..2^32-1."""
    xp = _namespace(c0)
    (w0, w2), (w1, w3) = _philox(xp.stack([c0, c2]), xp.stack([c1, c3]), xp.stack([k0, k1]))
    return w0, w1, w2, w3


def _philox(even: Any, odd: Any, key: Any) -> tuple[Any, Any]:
    """`philox` of words in pairs (c0 and c2, c1 and c3, k0 and k1): with few seeds, fewer operations are faster."""
    xp = _namespace(even)
    # Made of the key and not of Python's numbers, which would have to be copied to a GPU: no CUDA graph can hold that.
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
    """The two halves of a pair (2, ...) in the other order."""
    return pair[::-1] if isinstance(pair, np.ndarray) else pair.flip(0)


def normals(seeds: Any, count: int, stream: int = 0) -> Any:
    """Standard normals, float32 (B, count), on the device of `seeds`.

    Args:
        seeds: int64 (B,), numpy or torch, each in 0..MAX_SEED.
        count: numbers a seed.
        stream: separate streams of one seed share nothing.
    """
    return normal_streams(seeds, {stream: count})[0]


def normal_streams(seeds: Any, counts: Mapping[int, int]) -> list[Any]:
    """`normals` of several streams, `counts` by stream, in hardly more time than one takes."""
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
    """Four numbers, (B, 4n), of each block that `index` and `stream`, both (n,), name."""
    xp = _namespace(seeds)
    key = seeds[:, None]
    even = xp.stack([key * 0 + index, key * 0 + index * 0])
    odd = xp.stack([key * 0 + stream, even[1]])
    words = _philox(even, odd, xp.stack([key & _MASK, key >> 32]))
    # In double precision, so that the last bit of a platform's log or cos does not reach float32.
    u, v = (((word.astype(np.float64) if xp is np else word.double()) + 0.5) * 2.0**-32 for word in words)
    radius, angle = xp.sqrt(-2 * xp.log(u)), 2 * math.pi * v
    (x0, x1), (y0, y1) = radius * xp.cos(angle), radius * xp.sin(angle)
    draws = xp.stack([x0, y0, x1, y1], -1).reshape(len(seeds), -1)
    return draws.astype(np.float32) if xp is np else draws.float()


def random_words(seed: int, count: int) -> NDArray[np.int64]:
    """The first `count` of a seed's uniform integers in 0..MAX_SEED."""
    return _words(seed, np.arange(count, dtype=np.int64))


def random_word(seed: int, index: int) -> int:
    """One of them by its index, at the same cost for any index."""
    return int(_words(seed, np.array([index], dtype=np.int64))[0])


def _words(seed: int, index: NDArray[np.int64]) -> NDArray[np.int64]:
    key = np.full_like(index, seed)
    high, low, _, _ = philox(index, index * 0 + _SEED_STREAM, index * 0, index * 0, key & _MASK, key >> 32)
    words: NDArray[np.int64] = ((high << 32) | low) & MAX_SEED
    return words


def image_seeds(seed: int, count: int) -> NDArray[np.int64]:
    """Seeds of the images of one request: the first is `seed`, the others hash (seed, index).

    Neighbouring requests (seed, seed + 1) therefore share no image.
    """
    return seeds_at(seed, np.arange(count, dtype=np.int64))


def seeds_at(seed: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of `image_seeds` at some indices, whatever their number in all."""
    seeds = np.full_like(indices, seed)
    others = indices != 0
    if others.any():
        seeds[others] = _words(seed, indices[others])
    return seeds


def permutation(count: int, seed: int) -> NDArray[np.int64]:
    """A fixed random order of 0..count-1: the same on every platform and release of numpy."""
    return np.argsort(random_words(seed, count), kind="stable")
