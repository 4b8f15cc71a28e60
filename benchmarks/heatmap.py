"""The picture of docs/http.md: clothes, the same with a digit pasted in, and the heatmaps of both.

    python benchmarks/heatmap.py [--out docs/figures/heatmap.png]

Also says how much hotter the pasted square is than the rest, over 200 images. Both sets are test images.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddaebm.model.bundle import find_bundle, load_bundle
from ddaebm.model.images.encode import encode_png, make_grid, overlay
from ddaebm.model.images.readers import read_images
from ddaebm.model.runtime import OnnxEngine

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
SIDE = 13  # of the pasted square, in pixels of 28
SHOWN = (0, 5, 11, 15, 20, 31, 40, 77)  # one of each kind of clothes or so; the first column of the figure
ZOOM = 3


def paste(clothes: NDArray[np.uint8], digit: NDArray[np.uint8], top: int, left: int) -> NDArray[np.uint8]:
    """The middle of the digit, shrunk, in place of a square of the clothes; all (28, 28, 1)."""
    small = Image.fromarray(digit[4:24, 4:24, 0]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    mixed = clothes.copy()
    mixed[top : top + SIDE, left : left + SIDE, 0] = np.asarray(small)
    return mixed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/figures/heatmap.png"))
    out = parser.parse_args().out
    runtime = OnnxEngine(load_bundle(find_bundle("fashion-mnist")))
    clothes, digits = (
        read_images(FIXTURES / f"{name}-test-512.npz", runtime.bundle.contract) for name in ("fashion-mnist", "mnist")
    )
    places = np.random.default_rng(0).integers(0, 28 - SIDE + 1, (200, 2))
    mixed = np.stack([paste(clothes[i], digits[i], *place) for i, place in enumerate(places)])
    heats = [runtime.explain(images[:200]).heat for images in (clothes, mixed)]

    inside = np.zeros((200, 28, 28), dtype=bool)
    for mask, (top, left) in zip(inside, places, strict=True):
        mask[top : top + SIDE, left : left + SIDE] = True
    gain = heats[1] - heats[0]
    print(f"the square got hotter than the rest in {np.mean(_margin(gain, inside) > 0):.1%} of 200 images;")
    print(f"it is hotter than the rest in {np.mean(_margin(heats[1], inside) > 0):.1%}")

    tiles = []
    for i in SHOWN:
        for images, maps in ((clothes, heats[0]), (mixed, heats[1])):
            tiles += [images[i].repeat(3, axis=2), overlay(images[i], maps[i], *runtime.explainer.warm)]
    grid = make_grid(np.stack(tiles), columns=8)
    out.write_bytes(encode_png(grid.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)))
    print(out)


def _margin(values: NDArray[np.float64], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean inside the square less mean outside, one an image."""
    return np.array([row[mask].mean() - row[~mask].mean() for row, mask in zip(values, inside, strict=True)])


if __name__ == "__main__":
    main()
