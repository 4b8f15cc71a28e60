"""Adversarial energy-based diffusion: images in four network calls, and calibrated out-of-distribution verdicts.

>>> import ddaebm
>>> model = ddaebm.load("fashion-mnist")
>>> images = model.sample(64, seed=1)  # uint8 (64, 28, 28, 1)
>>> result = model.score(images)
>>> result.is_ood(alpha=0.05)  # bool (64,)

The names below are imported on first use: `import ddaebm` itself needs neither numpy nor torch.
"""

import importlib
import os

__version__ = "0.1.0"

# `model`, `service` and `training` are symbolic links in a checkout, and folders in a wheel.
_HERE = os.path.dirname(__file__)  # noqa: PTH120  # pathlib takes longer to import than all the rest
if not all(os.path.isdir(f"{_HERE}/{room}") for room in ("model", "service", "training")):  # noqa: PTH112
    raise ImportError(
        "the symbolic links ddaebm/model, ddaebm/service and ddaebm/training are missing from this copy; "
        "clone again with `git clone -c core.symlinks=true`, or install the wheel"
    )

TYPE_CHECKING = False  # as typing.TYPE_CHECKING: true for type checkers
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


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME.get(name, "ddaebm.model.errors")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
