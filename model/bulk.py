"""Bulk operations in constant memory: write samples to a file or folder, and score all images of a PATH."""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.engine import Engine
from ddaebm.model.errors import ConfigError, DataError, ImageError
from ddaebm.model.files import naming, require_writable, write_file, write_stream, write_zip
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.decode import MAX_PIXELS, Decoded
from ddaebm.model.images.encode import encode_png, make_grid, outline, overlay
from ddaebm.model.images.formats import Entry
from ddaebm.model.images.readers import decode_entry, entries
from ddaebm.model.noise import seeds_at
from ddaebm.model.ood.levels import Explained, because
from ddaebm.model.ood.masks import colour_of
from ddaebm.model.ood.regions import regions
from ddaebm.model.parallel import in_order, rows_within
from ddaebm.model.progress import Tick, say_nothing

T = TypeVar("T")
Pictures: TypeAlias = Callable[[int, str, bytes], None]

BATCH = 64
MAX_GRID = 4096  # images in one PNG, which is built in memory
_MANIFEST = "samples.json"


def sample_name(index: int, seed: int) -> str:
    """File name of the image at `index` of a set. Sampling with `seed` alone gives the same image."""
    return f"{index:08d}-{seed}.png"


def sample_to(engine: Engine, out: Path, seed: int, n: int, tick: Tick = say_nothing) -> None:
    """Write the first n images of `seed` to `out`: a .png grid, .npy, .zip of PNGs, or folder of PNGs.

    Except for a grid, a repeated call with the same bundle and seed resumes an interrupted one. The result has the same
    bytes as without the interruption.

    Raises:
        ConfigError: The suffix is unknown, there are too many images for a grid, the folder holds something else, or
            another process is writing `out`.
    """
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: there is no folder {out.parent}; create it first")
    if out.suffix in (".png", ".npy", ".zip") and out.is_dir():
        raise ConfigError(f"{out} is a folder, but its suffix is that of a file; rename it, or give another --out")
    require_writable(out)
    if out.suffix == ".png":
        if n > MAX_GRID:
            raise ConfigError(
                f"{n} images are too many for one PNG, which holds at most {MAX_GRID}; give .npy, .zip or a folder"
            )
        images = np.concatenate([pixels for _, pixels in _batches(engine, seed, range(n), tick)])
        write_file(out, encode_png(make_grid(images)))
    elif out.suffix in (".npy", ".zip"):
        _sample_to_file(engine, out, seed, n, tick)
    elif out.is_file():
        raise ConfigError(f"{out} is a file; give a folder, or a name ending in .png (a grid), .npy or .zip")
    elif out.suffix == "" or out.is_dir():
        _sample_to_folder(engine, out, seed, n, tick)
    else:
        raise ConfigError(f"{out}: the suffix must be .png (a grid), .npy or .zip, or none for a folder")


def _batches(
    engine: Engine, seed: int, indices: Iterable[int], tick: Tick
) -> Iterator[tuple[Sequence[int], NDArray[np.uint8]]]:
    """Sample the images at `indices` of the set; yield batches of indices and images (B, H, W, C)."""

    def draw(batch: Sequence[int]) -> tuple[Sequence[int], NDArray[np.uint8]]:
        return batch, engine.sample(seeds_at(seed, np.array(batch)))

    for batch, images in in_order(draw, parts(indices), engine.workers):
        yield batch, images
        tick(len(batch))


def batch_of(engine: Engine) -> int:
    """Images that are scored at a time, in constant memory whatever their size."""
    return rows_within(BATCH, engine.contract.height * engine.contract.width)


def parts(items: Iterable[T], size: int = BATCH) -> Iterator[list[T]]:
    """Group `items` into lists of `size`. If `items` raises DataError, the items before it are yielded first."""
    part: list[T] = []
    try:
        for item in items:
            part.append(item)
            if len(part) == size:
                yield part
                part = []
    except DataError:
        if part:
            yield part
        raise
    if part:
        yield part


def _sample_to_file(engine: Engine, out: Path, seed: int, n: int, tick: Tick) -> None:
    """Collect raw pixels in a temporary file beside `out`, and write `out` from it when all images are done.

    A temporary file left by a killed process is continued.
    """
    spool_path = out.with_name(f".{out.name}.{engine.digest[:16]}-{seed}.partial")
    size = int(np.prod(engine.native.shape))
    spool_path.touch()
    with naming(spool_path), spool_path.open("r+b") as spool, _alone(spool, out):
        done = min(os.fstat(spool.fileno()).st_size // size, n)
        tick(done, found=True)
        for batch, pixels in _batches(engine, seed, range(done, n), tick):
            spool.seek(batch[0] * size)
            spool.write(pixels.tobytes())
            spool.flush()
            os.fsync(spool.fileno())
        with write_stream(out) as handle:
            if out.suffix == ".npy":
                _write_npy(handle, spool, (n, *engine.native.shape))
            else:
                write_zip(handle, _png_members(spool, engine.native, seed, n))
        spool_path.unlink()


def _write_npy(handle: IO[bytes], spool: IO[bytes], shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(handle, header)
    spool.seek(0)
    left = int(np.prod(shape))
    while left:
        chunk = spool.read(min(left, 2**20))
        handle.write(chunk)
        left -= len(chunk)


def _png_members(spool: IO[bytes], contract: Contract, seed: int, n: int) -> Iterator[tuple[str, bytes]]:
    shape = contract.shape
    spool.seek(0)
    for start in range(0, n, BATCH):
        for i, image_seed in enumerate(seeds_at(seed, np.arange(start, min(start + BATCH, n)))):
            pixels = np.frombuffer(spool.read(int(np.prod(shape))), np.uint8).reshape(shape)
            yield sample_name(start + i, int(image_seed)), encode_png(pixels)


def _sample_to_folder(engine: Engine, out: Path, seed: int, n: int, tick: Tick) -> None:
    ours = json.dumps({"model": engine.name, "digest": engine.digest, "seed": seed}) + "\n"
    manifest = out / _MANIFEST
    if manifest.exists():
        if manifest.read_bytes() != ours.encode():
            raise ConfigError(
                f"{out} holds samples of another bundle or seed (see its {_MANIFEST}); give another --out"
            )
    else:
        if out.is_dir() and any(out.iterdir()):
            raise ConfigError(f"{out} is not empty and was not made by `ddaebm sample`; give another --out")
        out.mkdir(parents=True, exist_ok=True)
        write_file(manifest, ours.encode())

    def path_of(index: int) -> Path:
        return out / sample_name(index, int(seeds_at(seed, np.array([index]))[0]))

    def missing() -> Iterator[int]:
        for index in range(n):
            if path_of(index).exists():
                tick(1, found=True)
            else:
                yield index

    with manifest.open("rb") as handle, _alone(handle, out):
        for batch, images in _batches(engine, seed, missing(), tick):
            for index, pixels in zip(batch, images, strict=True):
                write_file(path_of(index), encode_png(pixels), sync=False)


@contextmanager
def _alone(handle: IO[bytes], out: Path) -> Iterator[None]:
    """Lock an open file for this process. The operating system releases the lock when the process ends.

    Raises:
        ConfigError: Another process holds the lock.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"another process is writing {out}; wait for it, or give another --out") from error
    yield


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of one image of a PATH, or the reason why it could not be read."""

    index: int
    name: str
    energies: list[float] | None = None  # (T,)
    energy_quantiles: list[float] | None = None  # (T,)
    ood_score: float | None = None
    p_value: float | None = None
    because: str | None = None  # "whole" or "spot"
    box: list[int] | None = None  # of the spot: left, top, width, height
    resized: bool | None = None
    regions: list[dict[str, Any]] | None = None  # if pictures are made: `model.ood.regions.Region`, the strongest first
    error: str | None = None


def score_paths(
    engine: Engine,
    paths: Iterable[str],
    tick: Tick = say_nothing,
    max_pixels: int = MAX_PIXELS,
    pictures: Pictures | None = None,
) -> Iterator[Scored]:
    """Score all images of all `paths`, in order.

    Args:
        max_pixels: Most pixels of one image; a larger one is yielded with an error.
        pictures: Called with the index and name of each image, and a PNG of its heat and regions.

    Raises:
        DataError: A PATH cannot be read to its end. The images before it have been yielded.
    """
    images = (entry for path in paths for entry in entries(path, engine.contract.channels))
    return score_entries(engine, images, tick, max_pixels, pictures)


def score_entries(
    engine: Engine,
    images: Iterable[Entry],
    tick: Tick = say_nothing,
    max_pixels: int = MAX_PIXELS,
    pictures: Pictures | None = None,
) -> Iterator[Scored]:
    """Score all entries, in order. An image that cannot be read is yielded with its error.

    Exceptions of `images` are raised after the scores of all earlier images.
    """

    size = batch_of(engine)

    def score(numbered: tuple[int, list[Entry]]) -> list[Scored]:
        number, batch = numbered
        return list(_score_batch(engine, batch, number * size, max_pixels, pictures))

    for scored in in_order(score, enumerate(parts(images, size)), engine.workers):
        yield from scored
        tick(len(scored))


def _score_batch(
    engine: Engine, batch: list[Entry], first: int, max_pixels: int, pictures: Pictures | None
) -> Iterator[Scored]:
    decoded: list[Decoded | ImageError] = []
    for entry in batch:
        try:
            decoded.append(decode_entry(entry, engine.contract, max_pixels))
        except ImageError as error:
            decoded.append(error)
    readable = [item.pixels for item in decoded if isinstance(item, Decoded)]
    rows: Iterator[tuple[Any, ...]] = iter(())
    if readable:
        scores = engine.explain(np.stack(readable)) if pictures else engine.score(np.stack(readable))
        quantiles = engine.explainer.energy_quantiles(scores.energies)
        heat = scores.heat if isinstance(scores, Explained) else [None] * len(readable)
        rows = zip(scores.energies, quantiles, scores.ood_score, scores.p_value, scores.box, heat, strict=True)
    for index, (entry, item) in enumerate(zip(batch, decoded, strict=True), first):
        if isinstance(item, ImageError):
            yield Scored(index, entry.name, error=str(item))
        else:
            energies, quantiles, ood_score, p_value, box, heat_of_it = next(rows)
            reason = because(box)
            found = None
            if pictures:
                found = regions(heat_of_it, item.pixels.shape[0])
                picture = overlay(colour_of(item.pixels), heat_of_it, *engine.explainer.warm)
                pictures(index, entry.name, encode_png(outline(picture, [region.box for region in found])))
            yield Scored(
                index, entry.name, energies.tolist(), quantiles.tolist(), float(ood_score), float(p_value),
                reason, box.tolist() if reason == "spot" else None, item.resized,
                None if found is None else [{"box": region.box, "strength": region.strength} for region in found],
            )  # fmt: skip
