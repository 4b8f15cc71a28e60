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
    from ddaebm.api import Model as Model
    from ddaebm.api import ScoreResult as ScoreResult
    from ddaebm.api import load as load
    from ddaebm.detector import Detector as Detector
    from ddaebm.model.errors import (
        BundleError as BundleError,
    )
    from ddaebm.model.errors import (
        ConfigError as ConfigError,
    )
    from ddaebm.model.errors import (
        DataError as DataError,
    )
    from ddaebm.model.errors import (
        DdaebmError as DdaebmError,
    )
    from ddaebm.model.errors import (
        ImageError as ImageError,
    )
    from ddaebm.model.errors import (
        InputError as InputError,
    )

_ERRORS = ("BundleError", "ConfigError", "DataError", "DdaebmError", "ImageError", "InputError")
_HOME = {
    "Detector": "ddaebm.detector",
    "Model": "ddaebm.api",
    "ScoreResult": "ddaebm.api",
    "load": "ddaebm.api",
    **dict.fromkeys(_ERRORS, "ddaebm.model.errors"),
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
