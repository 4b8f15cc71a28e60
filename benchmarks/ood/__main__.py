"""The OOD score beside its peers on one protocol: what each tells from the ordinary images of a bundle, and how fast.

    python -m benchmarks.ood fashion-mnist --train FASHION --test FASHION/t10k-images-idx3-ubyte.gz \\
        --ood mnist=MNIST/t10k-images-idx3-ubyte.gz --out runs/ood --doc docs/ood.md \\
        --plot docs/figures/ood-fashion-mnist.png --pictures docs/figures/ood-sets.png
    python -m benchmarks.ood cifar10-jpeg --train CIFAR/train --test CIFAR/test --out runs/ood \\
        --ood fashion-mnist=FASHION/t10k-images-idx3-ubyte.gz --ood mnist=MNIST/t10k-images-idx3-ubyte.gz

All detectors learn from the same part of the training images, which standardises the score in the bundle and which its
networks did not see; those that take pixels alone learn from some of the networks' own as well, up to 10,000. None sees
a strange image. Out of distribution is the positive class.
"""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ood.figures import pictures, plot
from benchmarks.ood.peers import MOST, look, network_detectors, pixel_detectors
from benchmarks.ood.report import ORDINARY, STRANGE, compare, discoveries, false_alarms, markdown
from benchmarks.ood.sets import LATER, REPORTED, UNSEEN, Images, make_sets
from benchmarks.pages import write_section
from ddaebm.model.bundle import find_bundle, load_bundle
from ddaebm.model.files import write_file
from ddaebm.model.images.readers import read_images
from ddaebm.model.noise import permutation
from ddaebm.model.runtime import OnnxEngine
from ddaebm.training.data import Splits, split


def read_mixed(path: str, runtime: OnnxEngine) -> Images:
    """In a fixed random order: a folder may have its classes one after another."""
    images = read_images(path, runtime.bundle.contract)
    return images[permutation(len(images), seed=0)]


def measure(runtime: OnnxEngine, parts: Splits, whole: Images, named: dict[str, Images], count: int) -> dict[str, Any]:
    """Everything that the report says, as JSON; `count` images a set, false alarms on the `whole` test set."""
    known, all_test = look(runtime, parts.reference), look(runtime, whole)
    test = all_test.first(count)
    sets = {name: images[:count] for name, images in named.items()} | make_sets(test.images, REPORTED | UNSEEN | LATER)
    looked = {name: look(runtime, images) for name, images in sets.items()}
    more = parts.train[permutation(len(parts.train), seed=0)[: max(0, MOST - len(parts.reference))]]
    pixels = np.concatenate([parts.reference, more])[:MOST]
    detectors = compare(network_detectors(known), test, looked, network=True)
    detectors |= compare(pixel_detectors(pixels), test, looked, network=False)
    scorer = runtime.bundle.scorer
    usual = scorer.p_value(all_test.score)
    strange = {name: scorer.p_value(looked[name].score) for name in named}
    return {
        "name": runtime.bundle.name,
        "bundle": runtime.bundle.digest,
        "images": count,
        "test_images": len(whole),
        "learnt_from": len(pixels),
        "reported": [*named, *REPORTED],
        "unseen": list(UNSEEN),
        "later": list(LATER),
        "detectors": detectors,
        "false_alarms": false_alarms(usual, len(scorer.calibration_scores)),
        "discoveries": {name: discoveries(usual, p_values) for name, p_values in strange.items()},
    }


def write_tables(doc: Path, name: str, section: str, figures: Mapping[str, Path | None]) -> None:
    """Put `figures`, by their captions, and `section` between the bundle's two marks in `doc`."""
    shown = [f"![{text}]({os.path.relpath(file, doc.parent)})\n\n" for text, file in figures.items() if file]
    begin, end = (f"<!-- ood:{name}:{mark} -->" for mark in ("begin", "end"))
    write_section(doc, begin, end, "".join(shown) + section)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ood", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("bundle")
    parser.add_argument("--train", required=True, help="the bundle's training images")
    parser.add_argument("--test", required=True)
    parser.add_argument("--ood", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--out", type=Path, required=True, help="folder for BUNDLE.json and BUNDLE.md")
    parser.add_argument("--doc", type=Path, help="write the tables between the bundle's marks in this file as well")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG of AUROC a set")
    parser.add_argument("--pictures", type=Path, metavar="FILE", help="PNG of images of each set")
    parser.add_argument("-n", type=int, default=2_000, help="images of each set")
    args = parser.parse_args()
    runtime = OnnxEngine(load_bundle(find_bundle(args.bundle)), device="cpu", threads=1)
    parts = split(read_images(args.train, runtime.bundle.contract))
    if parts.digests() != runtime.bundle.splits:
        parser.error("--train is not what the bundle was trained on")
    whole = read_mixed(args.test, runtime)
    named = {name: read_mixed(path, runtime) for name, path in (text.split("=", 1) for text in args.ood)}
    if len(whole) < ORDINARY or any(len(images) < STRANGE for images in named.values()):
        parser.error(f"--test needs {ORDINARY} images at least, and each --ood {STRANGE}: a batch of both is judged")
    if args.pictures:
        shown = {name: images[:10] for name, images in named.items()} | make_sets(whole[:10], REPORTED | UNSEEN | LATER)
        write_file(args.pictures, pictures(whole, shown))
    result = measure(runtime, parts, whole, named, args.n)
    args.out.mkdir(parents=True, exist_ok=True)
    write_file(args.out / f"{result['name']}.json", (json.dumps(result, indent=2) + "\n").encode())
    section = markdown(result)
    write_file(args.out / f"{result['name']}.md", f"{section}\n".encode())
    print(section)
    if args.plot:
        write_file(args.plot, plot(result))
    if args.doc:
        figures = {"ordinary images, then a row of each set": args.pictures, "AUROC of each set": args.plot}
        write_tables(args.doc, result["name"], section, figures)


if __name__ == "__main__":
    main()
