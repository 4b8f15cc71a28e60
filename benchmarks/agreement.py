"""The p-value of an image must not depend on how it is asked for: alone, in a batch, over HTTP, by command, in torch.

    python benchmarks/agreement.py fashion-mnist --data FASHION/t10k-images-idx3-ubyte.gz [--out FILE.json]

For each way beside one by one: the share of images whose p-values differ by at most 2/(n + 1), n that of calibration
images, which is two places among their scores; and the largest difference.
"""

import argparse
import csv
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.testclient import TestClient

from ddaebm.model.bundle import Bundle, find_bundle, load_bundle
from ddaebm.model.files import encode_npy, write_file
from ddaebm.model.images.encode import encode_png
from ddaebm.model.images.readers import read_images
from ddaebm.model.nets.torch_engine import TorchEngine
from ddaebm.model.runtime import OnnxEngine
from ddaebm.service.app import create_app
from ddaebm.service.settings import Settings

BATCH = 256

Images = NDArray[np.uint8]
Floats = NDArray[np.float64]


def in_batches(score: Any, images: Images, size: int) -> Floats:
    return np.concatenate([score(images[i : i + size]).p_value for i in range(0, len(images), size)])


def over_http(bundle: Bundle, images: Images) -> Floats:
    """As PNG files in forms of 256."""
    found = []
    with TestClient(create_app(Settings(_env_file=None, bundle=(str(bundle.path),), device="cpu"))) as client:
        for i in range(0, len(images), BATCH):
            files = [("images", (f"{j}.png", encode_png(image))) for j, image in enumerate(images[i : i + BATCH])]
            results = client.post("/v1/scores", files=files).raise_for_status().json()["results"]
            found += [result["p_value"] for result in results]
    return np.array(found)


def by_command(bundle: Bundle, images: Images) -> Floats:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        path.write_bytes(encode_npy(images))
        command = [
            sys.executable,
            "-m",
            "ddaebm",
            "score",
            str(path),
            "--bundle",
            str(bundle.path),
            "--format",
            "csv",
        ]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return np.array([float(row["p_value"]) for row in csv.DictReader(io.StringIO(done.stdout))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--data", required=True)
    parser.add_argument("-n", type=int, default=2_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    bundle = load_bundle(find_bundle(args.bundle))
    images = read_images(args.data, bundle.contract)[: args.n]
    runtime = OnnxEngine(bundle, device="cpu")
    alone = in_batches(runtime.score, images, 1)
    ways = {
        f"in batches of {BATCH}": in_batches(runtime.score, images, BATCH),
        "over HTTP, as PNG": over_http(bundle, images),
        "by the command line": by_command(bundle, images),
        "in torch, in batches": in_batches(TorchEngine(bundle, "cpu").score, images, BATCH),
    }
    near = 2 / (len(bundle.scorer.calibration_scores) + 1)
    report = {}
    for way, found in ways.items():
        difference = np.abs(found - alone)
        report[way] = {"within": float((difference <= near + 1e-12).mean()), "largest": float(difference.max())}
        print(f"{way}: {report[way]['within']:.4%} of {len(images)} within {near:.1g}; {difference.max():.2g} at most")
    if args.out:
        write_file(
            args.out, (json.dumps({"bundle": bundle.digest, "images": len(images), "ways": report}) + "\n").encode()
        )


if __name__ == "__main__":
    main()
