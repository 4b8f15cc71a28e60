"""Pixel arrays: conversion between uint8 and [-1, 1], and fingerprints."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def fingerprints(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A 64-bit hash of the pixels of each image, (N,). Equal images have equal fingerprints."""
    digests = [hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=8).digest() for image in images]
    return np.frombuffer(b"".join(digests), dtype="<u8")


def to_unit(pixels: Any) -> Any:
    """Scale values from 0..255 to [-1, 1]. `pixels` is a NumPy array or torch tensor with a floating-point dtype."""
    return pixels / 127.5 - 1


def from_unit(x: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Convert values in [-1, 1] to uint8; the inverse of `to_unit`, with clipping."""
    return np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.uint8)
