"""The load cases for every server."""

from typing import NamedTuple


class Case(NamedTuple):
    name: str
    kind: str  # sample, score, or mix: one of each in turn
    images: int  # a request
    clients: int


# From light to heavy: BentoML learns how long to wait for a batch, and forgets it over minutes.
CASES = [
    Case("1 image, 1 client", "sample", 1, 1),
    Case("1 image, 8 clients", "sample", 1, 8),
    Case("1 image, 32 clients", "sample", 1, 32),
    Case("1 image, 128 clients", "sample", 1, 128),
    Case("64 images, 8 clients", "sample", 64, 8),
    Case("1 score, 32 clients", "score", 1, 32),
    Case("1 image or score, 32 clients", "mix", 1, 32),
]
SINGLE = CASES[:4]  # the best of them is the capacity
SHARES = (0.3, 0.5, 0.7, 0.9)  # of the capacity, as Poisson arrivals of single images, on a fresh process
