"""The paper's figures. Each module has a function `reproduce` whose parameters are the options of its command."""

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddaebm.model.errors import ConfigError
from ddaebm.model.files import require_writable

FIGURES = {
    "toy": "fig1_toy",
    "nice": "fig2_nice",
    "samples": "fig3_samples",
    "noise": "fig4_noise",
    "steps": "fig5_steps",
    "ablations": "ablations",
}  # name on the command line -> module


class UsageError(ConfigError):
    """Invalid combination of command-line options."""


def reproduce(figure: str, out: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Make `figure` in the folder `out` and return the contents of its metrics.json.

    Raises:
        UsageError: no such figure, an option that it does not have, or files in `out` that are not of a figure.
        DdaebmError: as the figure's own `reproduce`.
        KeyboardInterrupt: stopped; the same call resumes.
    """
    if figure not in FIGURES:
        raise UsageError(f"no figure {figure!r}; there are {', '.join(FIGURES)}")
    module = importlib.import_module(f"ddaebm.training.reproduce.{FIGURES[figure]}")
    known = list(inspect.signature(module.reproduce).parameters)[1:]
    if unknown := [name for name in options if name not in known]:
        raise UsageError(f"the figure {figure} has no --{unknown[0]}; it takes {', '.join(f'--{k}' for k in known)}")
    _require_ours(out)
    metrics: dict[str, Any] = module.reproduce(out, **options)
    return metrics


def _require_ours(out: Path) -> None:
    """Raises UsageError if `out` has files that a figure would overwrite or mix with its own."""
    require_writable(out / "figure.png")
    if out.is_dir() and any(out.iterdir()) and not ((out / "settings.json").exists() or (out / "run").is_dir()):
        raise UsageError(f"{out} is not empty and was not made by `ddaebm reproduce`; give another --out")
