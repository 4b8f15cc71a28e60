"""Log of a run: metrics.jsonl, TensorBoard, sample grids and a progress bar."""

import io
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ddaebm.model.files import naming, write_file


class RunLog:
    """Context manager that writes the log of a run.

    Args:
        run: The run folder.
        first_step: Steps done so far. Entries of later steps are removed on entry, as those steps are repeated.
        total: Steps of the whole run, for the progress bar.
        enabled: False writes nothing; for all processes but the first.
    """

    def __init__(self, run: Path, first_step: int, total: int, enabled: bool = True) -> None:
        self.run, self.first_step, self.total, self.enabled = run, first_step, total, enabled
        self.interactive = sys.stderr.isatty()

    def __enter__(self) -> Self:
        if not self.enabled:
            return self
        path = self.run / "metrics.jsonl"
        self.run.mkdir(parents=True, exist_ok=True)
        kept = _lines_up_to(path, self.first_step)  # a killed run may have logged steps after its last checkpoint
        write_file(path, "".join(kept).encode())
        self.file: IO[str] = path.open("a", buffering=1)
        self.tensorboard = SummaryWriter(str(self.run / "tensorboard"), purge_step=self.first_step + 1)
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), disable=not self.interactive,
        )  # fmt: skip
        self.task = self.progress.add_task("train", total=self.total, completed=self.first_step)
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.enabled:
            self.progress.stop()
            with naming(self.run):
                self.file.close()
                self.tensorboard.close()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Log the metrics of `step` and update the progress bar; without a terminal, print a line to stderr."""
        if not self.enabled:
            return
        with naming(self.run):
            self.file.write(json.dumps({"step": step, **metrics}) + "\n")
            for name, value in metrics.items():
                self.tensorboard.add_scalar(name, value, step)
        seconds = metrics["seconds_per_step"]
        gap = metrics["energy_gen"] - metrics["energy_real"]
        if self.interactive:
            self.progress.update(self.task, completed=step, description=f"gap {gap:.2f}")
        else:
            left = (self.total - step) * seconds / 60
            print(
                f"step {step}/{self.total}  gap {gap:.2f}  {seconds:.3f} s/step  {left:.1f} min left", file=sys.stderr
            )

    def samples(self, step: int, suffix: str, contents: bytes) -> None:
        """Write samples/step-N with `suffix`, and show a PNG in TensorBoard."""
        folder = self.run / "samples"
        folder.mkdir(exist_ok=True)
        write_file(folder / f"step-{step:07d}{suffix}", contents)
        if suffix == ".png":
            pixels = np.atleast_3d(np.asarray(Image.open(io.BytesIO(contents))))
            self.tensorboard.add_image("samples", pixels, step, dataformats="HWC")


class Meter:
    """Means of the loss terms, and seconds per step, since the last `read`."""

    def __init__(self, step: int) -> None:
        self._reset(step)

    def _reset(self, step: int) -> None:
        self.step, self.began = step, time.perf_counter()
        self.terms: defaultdict[str, list[Tensor]] = defaultdict(list)

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add the scalar terms of one step."""
        for name, value in terms.items():
            self.terms[name].append(value)

    def read(self, step: int, accelerator: Accelerator) -> dict[str, float]:
        """Means over steps and processes and `seconds_per_step`; then start over from `step`."""
        means = {name: torch.stack(values).mean() for name, values in self.terms.items()}
        metrics = {name: float(accelerator.reduce(value, "mean")) for name, value in means.items()}
        metrics["seconds_per_step"] = (time.perf_counter() - self.began) / (step - self.step)
        self._reset(step)
        return metrics


def seconds_logged(run: Path) -> float:
    """Total training time of a run in seconds, over all its sessions, from metrics.jsonl."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [0, *(line["step"] for line in lines)]
    return float(sum((b - a) * line["seconds_per_step"] for a, b, line in zip(steps, steps[1:], lines, strict=False)))


def _lines_up_to(path: Path, step: int) -> list[str]:
    if not path.exists():
        return []
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):  # a kill truncated it
            break
        if json.loads(line)["step"] <= step:
            kept.append(line)
    return kept
