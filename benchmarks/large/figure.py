"""Draw faults on large pictures of three surfaces, each above its heatmap and regions.

python -m benchmarks.large.figure cifar10-jpeg docs/figures/large.png
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.large.__main__ import colour, gate
from benchmarks.large.faults import paint
from benchmarks.large.surfaces import TEXTURES, quilted
from ddaebm.model.bundle import Bundle, find_bundle, load_bundle
from ddaebm.model.files import write_file
from ddaebm.model.images.encode import encode_png, outline, overlay
from ddaebm.model.ood.regions import regions

FITTED = 200
SHOWN = (("hole", 12), ("scratch", 40), ("stain", 20), ("foreign patch", 40))  # strong, after an ordinary picture


def rows(bundle: Bundle, texture: str) -> list[NDArray[np.uint8]]:
    """An ordinary picture and faulty ones, and below them their heatmaps: two strips (256, 5·256, 3)."""
    pictures = quilted(texture, FITTED + 1 + len(SHOWN))
    with TemporaryDirectory() as folder:
        engine = gate(bundle, colour(pictures[:FITTED], bundle.native.channels), Path(folder) / "gate")
    painted = [paint(pictures[FITTED + i : FITTED + i + 1], fault, size, "strong")[0]
               for i, (fault, size) in enumerate(SHOWN, 1)]  # fmt: skip
    shown = colour(np.concatenate([pictures[FITTED : FITTED + 1], *painted]), bundle.native.channels)
    maps = [
        outline(overlay(image, heat, *engine.explainer.warm), [region.box for region in regions(heat, len(image))])
        for image, heat in zip(shown, engine.explain(shown).heat, strict=True)
    ]
    return [np.hstack(list(shown)), np.hstack(maps)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large.figure", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("bundle")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    bundle = load_bundle(find_bundle(args.bundle))
    strips = [strip for texture in TEXTURES for strip in rows(bundle, texture)]
    write_file(args.out, encode_png(np.vstack(strips)))


if __name__ == "__main__":
    main()
