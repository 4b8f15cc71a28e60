"""The picture of docs/http.md: patches of three surfaces, with a hole, a scratch and a stain, and their heatmaps.

    python -m benchmarks.heatmap [--out docs/figures/heatmap.png]

The gate of each surface is fitted as in `benchmarks/textures.py`; the patches shown are not among those that it knows.
Also says in how many of 200 patches with a hole or a scratch the hottest place is at the fault.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.painters import FAULTS
from benchmarks.textures import CALIBRATED, FITTED, TEXTURES, look_at, patches
from ddaebm.model.bundle import find_bundle, load_bundle
from ddaebm.model.images.encode import encode_png, make_grid, overlay
from ddaebm.model.ood.calibration import calibrated, cross_fit
from ddaebm.model.runtime import OnnxEngine

SHOWN, TRIED, ZOOM = 6, 200, 2
KINDS = ("hole", "scratch", "stain")
MIDDLE = 1  # severity


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.heatmap", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("docs/figures/heatmap.png"))
    out = parser.parse_args().out
    engine = OnnxEngine(load_bundle(find_bundle("cifar10-jpeg")), device="cpu")
    tiles = []
    for texture in TEXTURES:
        raw = patches(texture)
        known, calibration, new = np.split(
            np.random.default_rng(0).permutation(len(raw)), [FITTED, FITTED + CALIBRATED]
        )
        looked, usual = look_at(engine, raw[known]), look_at(engine, raw[calibration])
        gate = cross_fit(looked.images, looked.levels, CALIBRATED).fitted
        gate = calibrated(gate, gate.score(usual.images, usual.levels))
        new = new[:TRIED]
        sets = {"ordinary": raw[new]}
        for kind in KINDS:
            paint, severities = FAULTS[kind]
            sets[kind] = paint(raw[new], severities[MIDDLE], np.random.default_rng(0))
        for kind, pictures in sets.items():
            found = look_at(engine, pictures)
            heat = gate.explainer.heatmaps(found.images, found.levels.energy_map)
            for image, values in zip(found.images[:SHOWN], heat[:SHOWN], strict=True):
                tiles += [image, overlay(image, values, *gate.explainer.warm)]
            if kind in ("hole", "scratch"):
                changed = places_of_change(found.images, look_at(engine, raw[new]).images)
                at = [
                    bool(mask[np.unravel_index(row.argmax(), row.shape)])
                    for mask, row in zip(changed, heat, strict=True)
                ]
                print(f"{texture}, {kind}: the hottest place is at the fault in {np.mean(at):.0%} of {TRIED}")
    grid = make_grid(np.stack(tiles), columns=2 * SHOWN)
    out.write_bytes(encode_png(grid.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)))
    print(out)


def places_of_change(faulty: NDArray[np.uint8], ordinary: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Places within two of a pixel that the fault has changed by over 20 grey levels, (N, H, W)."""
    near = np.abs(faulty.astype(int) - ordinary).max(3) > 20
    for _ in range(2):
        padded = np.pad(near, ((0, 0), (1, 1), (1, 1)))
        height, width = near.shape[1:]
        near = np.any([padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
    found: NDArray[np.bool_] = near
    return found


if __name__ == "__main__":
    main()
