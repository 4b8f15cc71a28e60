"""Large pictures of surfaces: `ddaebm fit --side 256` beside `fit` in the networks' own form.

    python -m benchmarks.large cifar10-jpeg --doc docs/ood.md

Pictures of 256x256 are synthesised from each photograph. Of 300, one half is fitted and the other calibrates. False
alarms are counted on 500 new ones, and each kind of fault is painted on 20 of them. Crops of the left half of the
photograph are fitted as well, and those of the right half tested: they overlap, so that AUROC alone is told.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.large.faults import FAULTS, SEVERITIES, SIZES, paint
from benchmarks.large.surfaces import SIDE, TEXTURES, crops, quilted
from benchmarks.pages import write_section
from ddaebm.model.bundle import Bundle, find_bundle, load_bundle
from ddaebm.model.fitting import fit
from ddaebm.model.images.decode import bring
from ddaebm.model.images.encode import enlarge
from ddaebm.model.ood.levels import Explained
from ddaebm.model.ood.power import auroc
from ddaebm.model.parallel import in_order, usable_cores
from ddaebm.model.runtime import OnnxEngine

Floats = NDArray[np.float64]
Images = NDArray[np.uint8]

FITTED, TEST, PAINTED = 300, 500, 20  # pictures
DETECTORS: dict[str, int | None] = {"in the networks' form": None, f"--side {SIDE}": SIDE}  # and their side
ALPHA = 0.05
LEAST = 12  # pixels of a fault from which on it should be found


def gate(bundle: Bundle, images: Images, folder: Path) -> OnnxEngine:
    """The engine of what `fit` makes of ordinary images (N, H, W, C), half of which calibrate."""
    return OnnxEngine(fit(bundle, images, folder).bundle, device="cpu")


def look(engine: OnnxEngine, images: Images) -> Explained:
    """Scores and heat of images (N, H, W), of which `engine` takes its own form."""
    batches = [images[start : start + 8] for start in range(0, len(images), 8)]

    def explain(batch: Images) -> Explained:
        return engine.explain(bring(colour(batch, engine.native.channels), engine.contract))

    return Explained(*map(np.concatenate, zip(*in_order(explain, batches, usable_cores()), strict=True)))


def colour(images: Images, channels: int) -> Images:
    """(N, H, W) -> (N, H, W, C)."""
    return np.repeat(images[..., None], channels, 3)


def found(engine: OnnxEngine, ordinary: Explained, pictures: Images) -> tuple[Floats, Floats]:
    """AUROC of whole pictures and of pixels, by fault, size and severity, each (5, 5, 3).

    Each cell has the next `PAINTED` pictures.
    """
    whole, of_pixels = np.empty((2, len(FAULTS), len(SIZES), len(SEVERITIES)))
    for number, cell in enumerate(np.ndindex(whole.shape)):
        chosen = pictures[np.arange(number * PAINTED, (number + 1) * PAINTED) % len(pictures)]
        fault, size, severity = list(FAULTS)[cell[0]], SIZES[cell[1]], list(SEVERITIES)[cell[2]]
        painted, masks = paint(chosen, fault, size, severity)
        seen = look(engine, painted)
        whole[cell] = auroc(ordinary.ood_score, seen.ood_score)
        heat = np.stack([enlarge(values, masks.shape[1:]) for values in seen.heat])
        of_pixels[cell] = auroc(heat[~masks][::50], heat[masks])
    return whole, of_pixels


class Result(NamedTuple):
    alarms: int  # of TEST new pictures
    whole: dict[str, Floats]  # by detector
    of_pixels: Floats
    crops: dict[str, Floats]
    form: str
    megabytes: float


def measure(bundle: Bundle, texture: str) -> Result:
    pictures = quilted(texture, FITTED + TEST)
    left, right = (crops(texture, count, side) for count, side in ((FITTED, True), (TEST // 5, False)))
    whole, crop_whole = {}, {}
    with TemporaryDirectory() as folder:
        for name, side in DETECTORS.items():
            contract = bundle.native if side is None else replace(bundle.native, height=side, width=side)
            engines = [
                gate(bundle, bring(colour(images, bundle.native.channels), contract), Path(folder) / f"{name}-{i}")
                for i, images in enumerate((pictures[:FITTED], left))
            ]
            new = look(engines[0], pictures[FITTED:])
            whole[name], of_pixels = found(engines[0], new, pictures[FITTED:])
            crop_whole[name], _ = found(engines[1], look(engines[1], right), right)
        alarms, dense = int((new.p_value <= ALPHA).sum()), engines[0].bundle
        size = sum((dense.path / file).stat().st_size for file in dense.files) / 1e6
    assert dense.fit is not None
    return Result(alarms, whole, of_pixels, crop_whole, dense.fit["form"], size)


def markdown(results: dict[str, Result]) -> str:
    columns = [f"{size} px" for size in SIZES]
    lines = ["| surface | detector | fault | " + " | ".join(columns) + " |", "|---|---|---|" + "---|" * len(SIZES)]
    for texture, result in results.items():
        for name, cells in result.whole.items():
            for fault, rows in zip(FAULTS, cells, strict=True):
                values = " | ".join(" ".join(f"{value:.2f}" for value in row) for row in rows)
                lines.append(f"| {texture} | {name} | {fault} | {values} |")
    large = [size >= LEAST for size in SIZES]
    lines += [
        "",
        f"Each cell: {', '.join(SEVERITIES)}, AUROC of the picture. Means over faults of {LEAST} pixels and more:",
        "",
    ]
    lines += ["| | " + " | ".join(results) + " |", "|---|" + "---|" * len(results)]
    for name in DETECTORS:
        for label, of in (("", "whole"), (", crops of the photograph", "crops")):
            for j, severity in ((slice(None), "all severities"), (2, "strong alone")):
                means = " | ".join(
                    f"{getattr(result, of)[name][:, large][..., j].mean():.3f}" for result in results.values()
                )
                lines.append(f"| {name}{label}, {severity} | {means} |")
    pixels = " | ".join(f"{result.of_pixels[:, large].mean():.3f}, {result.of_pixels[:, large, 2].mean():.3f}"
                        for result in results.values())  # fmt: skip
    lines.append(f"| pixels of the heatmap at {SIDE}, all severities and strong | {pixels} |")
    lines.append("| the form that `fit` chose | " + " | ".join(result.form for result in results.values()) + " |")
    alarms = sum(result.alarms for result in results.values())
    lines += ["", f"False alarms at alpha = {ALPHA}: {alarms} of {TEST * len(results)} new pictures; in each of"
                  f" {', '.join(f'{result.alarms / TEST:.1%}' for result in results.values())}."
                  f" A gate is at most {max(result.megabytes for result in results.values()):.0f} MB."]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("bundle")
    parser.add_argument("--only", choices=TEXTURES, action="append", help="one surface; may be repeated")
    parser.add_argument("--doc", type=Path, help="write the tables between their marks in this file as well")
    args = parser.parse_args()
    bundle = load_bundle(find_bundle(args.bundle))
    section = markdown({texture: measure(bundle, texture) for texture in args.only or TEXTURES})
    print(section)
    if args.doc:
        write_section(args.doc, "<!-- large:begin -->", "<!-- large:end -->", section)


if __name__ == "__main__":
    main()
