"""The images of a run: which of them were trained on, recorded when the run begins.

P-values are valid only for a calibration part that was not trained on. The parts depend on the number and order of the
images, so an image that is added or deleted later would move others from one part to another.
"""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddaebm.model.errors import CheckpointError, DataError
from ddaebm.model.files import read_arrays, write_stream
from ddaebm.model.images.arrays import fingerprints
from ddaebm.training.config import TrainConfig
from ddaebm.training.data import PARTS, Splits, load_named, split

logger = logging.getLogger("ddaebm.training")

RECORD = "run_images.npz"  # in the run folder
_SHOWN = 3  # names that a message lists


@dataclass(frozen=True)
class Record:
    """Fingerprints (N,) and names of the samples of each part, by the part's name, in the order of `Splits`."""

    prints: dict[str, NDArray[np.uint64]]
    names: dict[str, list[str]]


def new_parts(config: TrainConfig) -> tuple[Splits, Record]:
    """Read the data of a new run and split it. Returns the parts, and their record for `write_record`.

    Raises:
        DataError: As `data.load_named` and `data.split`.
    """
    data, names = load_named(config.data, config.network, config.max_pixels)
    places, prints = split(np.arange(len(data))), fingerprints(data)
    chosen = {part: getattr(places, part) for part in PARTS}
    record = Record(
        {part: prints[indices] for part, indices in chosen.items()},
        {part: [names[i] for i in indices] for part, indices in chosen.items()},
    )
    return places.take(data), record


def write_record(run: Path, record: Record) -> None:
    """Write the record of a new run to its folder."""
    arrays: dict[str, NDArray[Any]] = {}
    for part in PARTS:
        text = "\0".join(record.names[part]).encode("utf-8", "surrogateescape")
        arrays |= {part: record.prints[part], f"{part}_names": np.frombuffer(text, np.uint8)}
    run.mkdir(parents=True, exist_ok=True)
    with write_stream(run / RECORD) as handle:  # each of several processes writes it, with the same contents
        np.savez_compressed(handle, allow_pickle=False, **arrays)


def read_record(run: Path) -> Record | None:
    """Read the record of a run; None for a run of an earlier release, which has none.

    Raises:
        CheckpointError: The record cannot be read.
    """
    path = run / RECORD
    if not path.exists():
        return None
    try:
        arrays = read_arrays(path.read_bytes())
        names = {part: arrays[f"{part}_names"].tobytes().decode("utf-8", "surrogateescape") for part in PARTS}
        return Record({part: arrays[part] for part in PARTS}, {part: text.split("\0") for part, text in names.items()})
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy the run again") from error


def recorded_parts(run: Path, config: TrainConfig, data: str | None = None, keep_parts: bool = False) -> Splits:
    """Read the data of a run that exists, and split it as when the run began.

    Args:
        data: PATH of the data, if it has moved since.
        keep_parts: If images were added since, leave them out in place of raising an error.

    Raises:
        CheckpointError: The record of the run cannot be read.
        DataError: As `data.load_named`, or the images are not those that the run began with.
    """
    source = data or config.data
    samples, names = load_named(source, config.network, config.max_pixels)
    places, record = split(np.arange(len(samples))), read_record(run)
    if record is None:
        logger.warning("%s: has no %s, so nobody can tell whether its images have changed since it began", run, RECORD)
        return places.take(samples)
    prints = fingerprints(samples)
    if all(np.array_equal(prints[getattr(places, part)], record.prints[part]) for part in PARTS):
        return places.take(samples)
    recorded = np.concatenate([record.prints[part] for part in PARTS])
    gone = not np.isin(recorded, prints).all()
    if keep_parts and not gone:
        order = np.argsort(prints, kind="stable")
        found = {part: order[np.searchsorted(prints, record.prints[part], sorter=order)] for part in PARTS}
        logger.warning("%s: has %d images, of which %d were there when %s began; the others are left out",
                       source, len(prints), len(recorded), run)  # fmt: skip
        return Splits(**{part: samples[found[part]] for part in PARTS})
    before = list(zip(recorded.tolist(), (name for part in PARTS for name in record.names[part]), strict=True))
    now = list(zip(prints.tolist(), names, strict=True))
    changes = [_count("added", _extra(now, before)), _count("deleted or changed", _extra(before, now))]
    trained = np.isin(prints[places.calibration], record.prints["train"]).sum()
    remedy = "restore them" if gone else "undo it, or add --keep-parts to go on with the parts of then"
    message = f"{source}: not the images that {run} began with: {'; '.join(filter(None, changes)) or 'another order'}"
    if trained:
        message += f"; {trained} of {len(places.calibration)} calibration images would be ones that were trained on"
    raise DataError(f"{message}: {remedy}")


def _extra(these: list[tuple[int, str]], others: list[tuple[int, str]]) -> list[str]:
    """Names of the images, (fingerprint, name), that are not among `others`, or not as often."""
    spare = Counter(print_ for print_, _ in others)
    same = set(others)
    extra = []
    for image in sorted(these, key=lambda image: image not in same):  # so that of two copies the new name is the extra
        if spare[image[0]] > 0:
            spare[image[0]] -= 1
        else:
            extra.append(image[1])
    return extra


def _count(change: str, names: list[str]) -> str:
    if not names:
        return ""
    return f"{len(names)} {change} ({', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''})"
