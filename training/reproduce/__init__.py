"""The paper's figures: a module each, whose `reproduce` has the options that its command takes."""

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddaebm.model.errors import ConfigError

FIGURES = {
    "toy": "Figure 1",
    "nice": "Figure 2",
    "samples": "Figure 3",
    "noise": "Figure 4",
    "steps": "Figure 5",
    "ablations": "what each part of the loss is for",
}


class UsageError(ConfigError):
    """What was asked for cannot be meant."""


def reproduce(figure: str, out: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Make `figure` in the folder `out`, with those `options` that were given; the contents of its metrics.json.

    Raises:
        UsageError: no such figure, or an option that it does not have.
        DdaebmError: as the figure's own `reproduce`.
        KeyboardInterrupt: it was stopped; the same call goes on.
    """
    if figure not in FIGURES:
        raise UsageError(f"no figure {figure!r}; there are {', '.join(FIGURES)}")
    module = importlib.import_module(f"ddaebm.training.reproduce.{figure}")
    known = list(inspect.signature(module.reproduce).parameters)[1:]
    if unknown := [name for name in options if name not in known]:
        raise UsageError(f"the figure {figure} has no --{unknown[0]}; it takes {', '.join(f'--{k}' for k in known)}")
    metrics: dict[str, Any] = module.reproduce(out, **options)
    return metrics
