"""Forms of the score, on choice images and transforms that no report has: how what it looks at was chosen.

    python -m benchmarks.ood.forms fashion-mnist --train FASHION --out runs/forms [-n 1000]

Each form adds D/T · weight · Σ_k r_k² to the score without pixels. r_k is how far a statistic of level k's energy map
lies from what a ridge regression on the energies and features expects, in standard deviations; or that above zero
alone. Also the score with fewer levels, which would cost less. A second table adds statistics of the image itself to
the score with the pixels' that were chosen. What the network says is kept in OUT, so that another form takes seconds.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.ood.choice import CHOICE
from benchmarks.ood.peers import png_bytes
from benchmarks.ood.sets import Images, make_sets
from ddaebm.model.bundle import find_bundle, load_bundle
from ddaebm.model.files import write_file
from ddaebm.model.images.readers import read_images
from ddaebm.model.ood.calibration import BATCH
from ddaebm.model.ood.levels import LevelStatistics
from ddaebm.model.ood.scoring import fine_detail, fit_scorer, statistics
from ddaebm.model.runtime import OnnxEngine
from ddaebm.training.data import Splits, split
from ddaebm.training.evaluate import auroc

Floats = NDArray[np.float64]
Rows = dict[str, dict[str, Floats]]  # {set: {"rows": (N, D), statistic: (N, T)}}
LOCAL = 4  # the last of CHOICE, of local faults
FLOOR = 0.03  # of a level's mean energy of a pixel, added before a logarithm, so that nearly nothing does not count
Z, LOG, ROOT, SHARE = "z", "log", "root", "share"  # what of a pixel's energy is standardised over reference images
OF_PIXELS: dict[str, Callable[[Floats], Floats]] = {  # standardised energies (N, T, H, W) -> (N, T)
    "mean": lambda z: z.mean((2, 3)),
    "2-norm": lambda z: _log_norm(z, 2),
    "4-norm": lambda z: _log_norm(z, 4),
    "8-norm": lambda z: _log_norm(z, 8),
    "largest": lambda z: np.log(np.maximum(z.max((2, 3)), 0.1)),
    "2-norm of high ones": lambda z: _log_norm(np.maximum(z, 0), 2),
    "roughness": lambda z: 0.5 * np.log(sum((np.diff(z, axis=axis) ** 2).mean((2, 3)) for axis in (2, 3)) + 1e-12),
}
RAW: dict[str, Callable[[Floats], Floats]] = {  # energies of pixels (N, T, P), ascending -> (N, T)
    "largest": lambda m: np.log(m[..., -1] + 1e-12),
    "mean of the highest 1 %": lambda m: np.log(m[..., -max(1, m.shape[2] // 100) :].mean(2) + 1e-12),
    "mean of the highest 10 %": lambda m: np.log(m[..., -m.shape[2] // 10 :].mean(2) + 1e-12),
    "median": lambda m: np.log(m[..., m.shape[2] // 2] + 1e-12),
    "lower quartile": lambda m: np.log(m[..., m.shape[2] // 4] + 1e-12),
    "2-norm": lambda m: 0.5 * np.log((m**2).mean(2) + 1e-24),
}

PAIR = ("log: largest", "z: 2-norm")  # in the score, 1/16 each
OF_IMAGE: dict[str, Callable[[Images], Floats]] = {  # images (N, H, W, C) -> (N,)
    "diagonal detail": lambda images: fine_detail(images)[:, 0],
    "diagonal detail, mean logarithm": lambda images: _log_mean(np.log1p(np.abs(_diagonal(images))), 0.03),
    "residual of JPEG-LS's predictor": lambda images: _log_mean(np.abs(_median_residual(images))),
    "slopes": lambda images: _log_mean(np.abs(np.diff(images.astype(float), axis=1)[:, :, 1:])
                                       + np.abs(np.diff(images.astype(float), axis=2)[:, 1:])),
    "Laplacian": lambda images: _log_mean(np.abs(sum(np.diff(images.astype(float), 2, axis)[cut] for axis, cut in (
        (1, np.s_[:, :, 1:-1]), (2, np.s_[:, 1:-1]))))),
    "PNG bytes": lambda images: np.log(png_bytes(images)),
    "brightness": lambda images: images.mean((1, 2, 3)),
    "contrast": lambda images: np.log(images.std((1, 2, 3)) + 1),
}  # fmt: skip


def _diagonal(images: Images) -> Floats:
    return np.diff(np.diff(images.astype(np.float64), axis=1), axis=2)


def _median_residual(images: Images) -> Floats:
    """Of each pixel, from the median of its left and upper neighbours and their plane (Weinberger et al. 2000)."""
    padded = np.pad(images.astype(np.float64), [(0, 0), (1, 0), (1, 0), (0, 0)])
    left, above, corner = padded[:, 1:, :-1], padded[:, :-1, 1:], padded[:, :-1, :-1]
    residual: Floats = images - np.median([left, above, left + above - corner], axis=0)
    return residual


def _log_mean(values: Floats, least: float = 0.1) -> Floats:
    found: Floats = np.log(values.mean((1, 2, 3)) + least)
    return found


def _log_norm(z: Floats, power: int) -> Floats:
    found: Floats = np.log((np.abs(z) ** power).mean((2, 3)) + 1e-12) / power
    return found


@dataclass(frozen=True)
class Pixels:
    """What the energy of a pixel is like over reference images, in four forms."""

    floor: Floats  # (T, 1, 1)
    moments: dict[str, tuple[Floats, Floats]]  # {form: mean and std (T, H, W)}; std at least half its mean over a level


def pixel_forms(energy_map: Floats, floor: Floats) -> dict[str, Floats]:
    """What may be standardised of energy maps (N, T, H, W)."""
    mean = energy_map.mean((2, 3), keepdims=True)
    return {Z: energy_map, LOG: np.log(energy_map + floor), ROOT: np.sqrt(energy_map), SHARE: energy_map / mean}


def fit_pixels(parts: list[NDArray[np.floating]]) -> Pixels:
    """From energy maps (n, T, H, W), batch by batch."""
    count = sum(map(len, parts))
    floor = FLOOR * sum(part.mean((2, 3)).sum(0, dtype=np.float64) for part in parts)[:, None, None] / count
    total: dict[str, Floats] = {}
    for part in parts:
        for form, values in pixel_forms(part.astype(np.float64), floor).items():
            total[form] = total.get(form, 0) + np.stack([values.sum(0), (values**2).sum(0)])
    moments = {}
    for form, (sums, squares) in total.items():
        mean = sums / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        moments[form] = mean, np.maximum(std, 0.5 * std.mean((1, 2), keepdims=True))
    return Pixels(floor, moments)


def map_statistics(energy_map: NDArray[np.floating], known: Pixels) -> dict[str, Floats]:
    """{"form: statistic": (N, T)} of energy maps (N, T, H, W)."""
    maps = energy_map.astype(np.float64)
    ascending = np.sort(maps.reshape(*maps.shape[:2], -1), axis=2)
    found = {f"raw: {name}": compute(ascending) for name, compute in RAW.items()}
    for form, values in pixel_forms(maps, known.floor).items():
        mean, std = known.moments[form]
        found |= {f"{form}: {name}": compute((values - mean) / std) for name, compute in OF_PIXELS.items()}
    return found


def look(runtime: OnnxEngine, parts: Splits, count: int) -> Rows:
    """Rows and map statistics of reference images, of `count` choice images, and of transforms of `count` others."""
    known = [runtime.level_statistics(parts.reference[i : i + BATCH]) for i in range(0, len(parts.reference), BATCH)]
    pixels = fit_pixels([levels.energy_map for levels in known])

    def rows(images: Images, batches: list[LevelStatistics]) -> dict[str, Floats]:
        found = [{"rows": statistics(e, f), **map_statistics(m, pixels)} for e, m, f in batches]
        of_image = {f"image: {name}": compute(images)[:, None] for name, compute in OF_IMAGE.items()}
        return of_image | {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    sets = {"ordinary": parts.choice[count : 2 * count], **make_sets(parts.choice[:count], CHOICE)}
    return {"reference": rows(parts.reference, known)} | {
        name: rows(images, [runtime.level_statistics(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])
        for name, images in sets.items()
    }


def surprise(of: str, sets: Rows) -> dict[str, Floats]:
    """{set: r (N, T or 1)} of the statistic `of`, given log energies and features."""
    known = np.hstack([sets["reference"][of], sets["reference"]["rows"]])
    mean, std = known.mean(0), np.maximum(known.std(0), 1e-9)
    width = sets["reference"][of].shape[1]
    wanted, given = np.split((known - mean) / std, [width], axis=1)
    gram = given.T @ given / len(given) + 0.01 * np.eye(given.shape[1])
    weights = np.linalg.solve(gram, given.T @ wanted / len(given))
    spread = (wanted - given @ weights).std(0)
    found = {}
    for name, part in sets.items():
        rows = (np.hstack([part[of], part["rows"]]) - mean) / std
        found[name] = (rows[:, :width] - rows[:, width:] @ weights) / spread
    return found


def forms(sets: Rows, levels: int) -> dict[str, dict[str, Floats]]:
    """{form: {set: scores}}, the score without pixels first."""
    now = _scores(sets, list(range(levels)), levels)
    found = {"without": now}
    for kept in ([0], [1], [0, 1], [0, 1, 2]):
        found[f"levels {', '.join(map(str, kept))} alone"] = _scores(sets, kept, levels)
    share = sets["reference"]["rows"].shape[1] / levels  # D/T
    for of in sets["reference"]:
        if of == "rows" or of.startswith("image: "):
            continue
        for name, r in surprise(of, sets).items():
            two_sided, above = np.square(r).sum(1), np.square(np.maximum(r, 0)).sum(1)
            found.setdefault(f"{of}, ⅛ r²", {})[name] = now[name] + share / 8 * two_sided
            found.setdefault(f"{of}, ¼ max(0, r)²", {})[name] = now[name] + share / 4 * above
    return found


def forms_of_images(sets: Rows, levels: int) -> dict[str, dict[str, Floats]]:
    """{form: {set: scores}}, the score with the pixels' two statistics first."""
    now, share = _scores(sets, list(range(levels)), levels), sets["reference"]["rows"].shape[1] / levels
    for of in PAIR:
        now = {name: now[name] + share / 16 * np.square(r).sum(1) for name, r in surprise(of, sets).items()}
    found = {"with pixels": now}
    for of in OF_IMAGE:
        for name, r in surprise(f"image: {of}", sets).items():
            for text, weight in (("⅛", 1 / 8), ("¼", 1 / 4), ("½", 1 / 2)):
                found.setdefault(f"{of}, {text} r²", {})[name] = now[name] + share * weight * np.square(r[:, 0])
    return found


def _scores(sets: Rows, kept: list[int], levels: int) -> dict[str, Floats]:
    width = sets["reference"]["rows"].shape[1] // levels - 1
    columns = kept + [levels + level * width + i for level in kept for i in range(width)]
    known = sets["reference"]["rows"][:, columns]
    scorer = fit_scorer(known, known[:1], len(kept))
    return {name: scorer.ood_score(part["rows"][:, columns]) for name, part in sets.items()}


def table(found: dict[str, dict[str, Floats]]) -> str:
    """Mean AUROC over the thirteen transforms, the local ones and all; the lowest; and the worst loss of one."""
    lines = ["| form | thirteen | local faults | all | lowest | most lost |", "|---" * 6 + "|"]
    base: Floats | None = None
    for name, scores in found.items():
        values = np.array([auroc(scores["ordinary"], scores[label]) for label in CHOICE])
        base = values if base is None else base
        numbers = (values[:-LOCAL].mean(), values[-LOCAL:].mean(), values.mean(), values.min())
        shown = " | ".join(f"{number:.3f}" for number in numbers)
        lines.append(f"| {name} | {shown} | {(values - base).min():+.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ood.forms", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("bundle")
    parser.add_argument("--train", required=True, help="the bundle's training images")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("-n", type=int, default=1_000, help="choice images, and as many others in each transform")
    args = parser.parse_args()
    runtime = OnnxEngine(load_bundle(find_bundle(args.bundle)), device="cpu")
    bundle = runtime.bundle
    kept = args.out / f"{bundle.digest[:12]}-{args.n}.npz"
    if not kept.exists():
        parts = split(read_images(args.train, bundle.contract))
        if parts.digests() != bundle.splits:
            parser.error("--train is not what the bundle was trained on")
        if args.n > len(parts.choice) // 2:
            parser.error(f"-n is {len(parts.choice) // 2} at most: half of the choice images")
        sets = look(runtime, parts, args.n)
        args.out.mkdir(parents=True, exist_ok=True)
        np.savez(kept, **{f"{name}/{of}": values for name, part in sets.items() for of, values in part.items()})
    loaded: Rows = {}
    with np.load(kept) as file:
        for key in file.files:
            name, of = key.split("/", 1)
            loaded.setdefault(name, {})[of] = file[key]
    text = "\n\n".join(table(make(loaded, bundle.config.num_steps)) for make in (forms, forms_of_images))
    write_file(args.out / f"{bundle.name}.md", f"{text}\n".encode())
    print(text)


if __name__ == "__main__":
    main()
