"""Arrays of pixels: grey levels <-> [-1, 1], and fingerprints."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def fingerprints(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """64 bits of a hash of each image's pixels, (N,): equal images have equal ones, others in all likelihood not."""
    digests = [hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=8).digest() for image in images]
    return np.frombuffer(b"".join(digests), dtype="<u8")


def to_unit(pixels: Any) -> Any:
    """uint8 grey levels -> [-1, 1]; numpy or torch, already floating point."""
    return pixels / 127.5 - 1


def from_unit(x: NDArray[np.floating]) -> NDArray[np.uint8]:
    """[-1, 1] -> uint8 grey levels; the inverse of `to_unit`."""
    return np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.uint8)
