"""Adversarial energy-based diffusion: images in four network calls, and calibrated out-of-distribution verdicts.

>>> import ddaebm
>>> model = ddaebm.load("fashion-mnist")
>>> images = model.sample(64, seed=1)  # uint8 (64, 28, 28, 1)
>>> result = model.score(images)
>>> result.is_ood(alpha=0.05)  # bool (64,)

The names below are imported on first use: `import ddaebm` itself needs neither numpy nor torch.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# `model`, `service` and `training` are symbolic links in a checkout, and folders in a wheel.
if not all((Path(__file__).parent / room).is_dir() for room in ("model", "service", "training")):
    raise ImportError(
        "the symbolic links ddaebm/model, ddaebm/service and ddaebm/training are missing from this copy; "
        "clone again with `git clone -c core.symlinks=true`, or install the wheel"
    )

if TYPE_CHECKING:
    from ddaebm.api import Model, load
    from ddaebm.detector import Detector
    from ddaebm.model.errors import BundleError, ConfigError, DataError, DdaebmError, ImageError, InputError
    from ddaebm.model.noise import image_seeds
    from ddaebm.result import ScoreResult

__all__ = [
    "BundleError",
    "ConfigError",
    "DataError",
    "DdaebmError",
    "Detector",
    "ImageError",
    "InputError",
    "Model",
    "ScoreResult",
    "__version__",
    "image_seeds",
    "load",
]
_HOME = {
    "Detector": "ddaebm.detector",
    "Model": "ddaebm.api",
    "ScoreResult": "ddaebm.result",
    "image_seeds": "ddaebm.model.noise",
    "load": "ddaebm.api",
}  # the errors are in ddaebm.model.errors


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME.get(name, "ddaebm.model.errors")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
