"""Counter-based normal numbers: each is a pure function of (seed, stream, index).

Philox4x32-10 (Salmon et al. 2011, *Parallel Random Numbers: As Easy as 1, 2, 3*) and Box–Muller.
A seed's noise therefore depends on nothing that shares its batch, and one code serves numpy and
torch: int64 arithmetic wraps alike in both.
"""

import math
import sys
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_SEED = 2**53 - 1  # what JSON carries exactly everywhere

_MASK = 0xFFFFFFFF
# Philox's multipliers and key increments; the first multiplier is above 2^31, so products wrap in
# int64. The 64 bits are right all the same: masking and shifting read them as unsigned.
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10

_SEED_STREAM = 0xFFFFFFFF  # no draw of `normals` uses it


def _namespace(array: Any) -> ModuleType:
    """numpy, or torch where the caller already holds a tensor (never imported here)."""
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-10 of counter words c0..c3 under key words k0, k1: int64 arrays in 0..2^32-1."""
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def normals(seeds: Any, count: int, stream: int = 0) -> Any:
    """Standard normals, float32 (B, count), on the device of `seeds`.

    Args:
        seeds: int64 (B,), numpy or torch, each in 0..MAX_SEED.
        count: numbers a seed.
        stream: separate streams of one seed share nothing.
    """
    xp = _namespace(seeds)
    blocks = -(-count // 4)
    counter = xp.arange(blocks, dtype=xp.int64) if xp is np else xp.arange(blocks, device=seeds.device)
    key = seeds[:, None]
    c0 = counter[None, :] + key * 0  # (B, blocks)
    words = philox(c0, c0 * 0 + stream, c0 * 0, c0 * 0, key & _MASK, key >> 32)
    # In double precision, so that the last bit of a platform's log or cos does not reach float32.
    u0, u1, u2, u3 = (((word.astype(np.float64) if xp is np else word.double()) + 0.5) * 2.0**-32 for word in words)
    r0, r1 = xp.sqrt(-2 * xp.log(u0)), xp.sqrt(-2 * xp.log(u2))
    a0, a1 = 2 * math.pi * u1, 2 * math.pi * u3
    draws = xp.stack([r0 * xp.cos(a0), r0 * xp.sin(a0), r1 * xp.cos(a1), r1 * xp.sin(a1)], -1)
    draws = draws.reshape(len(seeds), 4 * blocks)[:, :count]
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
