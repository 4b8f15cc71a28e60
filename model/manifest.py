"""The manifest of a bundle, `bundle.json`: its schema, and the errors for a manifest that does not match it."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from ddaebm.model.config import RETIRED, ModelConfig, drop_retired
from ddaebm.model.errors import BundleError, BundleVersionError, ConfigError
from ddaebm.model.images.contract import Contract
from ddaebm.model.ood.calibration import Fitted
from ddaebm.model.ood.scoring import weights_beside

S = TypeVar("S", bound=BaseModel)

FORMAT_VERSION = 8
# Earlier formats are read and served as they were: 7 has no graph for large images; in 6 the score has one number for
# the complexity of an image; in 5 it has no spots either.
WITHOUT_SPOTS, WITH_FINE_DETAIL, WITHOUT_PLACES = 5, 6, 7
MANIFEST = "bundle.json"
MAX_SIDE = 1024  # pixels along a side of an image that is scored densely, which bounds memory
_SHOWN = 3  # faults that an error message lists


def _only_fields_of(kind: type[Any]) -> BeforeValidator:
    """Refuse keys that are no fields of the dataclass `kind`, and turn JSON arrays into tuples.

    Removed fields are dropped, so that the manifests of earlier releases load.
    """
    known = {field.name for field in dataclasses.fields(kind)}

    def check(section: object) -> object:
        if not isinstance(section, dict):
            return section
        values = drop_retired(section, RETIRED)
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"unknown fields: {', '.join(unknown)}")
        return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}

    return BeforeValidator(check)


def check_name(name: str) -> str:
    """Return `name` if a bundle can have it: it becomes a part of URLs, metrics and log lines.

    Raises:
        ConfigError: It cannot.
    """
    try:
        return _check_name(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"a bundle cannot be named {name[:120]!r}: use letters, digits, '.', '_' and '-', at most 100,"
            " the first a letter or digit"
        )
    return name


class _Section(BaseModel):
    """Values must have the declared JSON types. Unknown keys are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class Calibration(_Section):
    """The images behind the p-values, and the files that `calibration.npz` was computed with."""

    size: int  # number of calibration images
    smallest_p: float
    images: dict[str, Any]  # count and sha256; after a recalibration also the digest of the earlier bundle
    of: dict[str, str | None]  # file name -> sha256


class Caught(_Section):
    """A row of what a gate catches; `model.ood.power.Caught`."""

    fault: str
    severity: str
    auroc: float
    caught: float


class FitReport(_Section):
    """The findings of `ddaebm fit`. Other keys are kept, for people."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    fitted: int  # number of images that the score was fitted to
    calibrated: int
    alpha: float  # of the table
    form: str | None = None  # of the score; None in bundles of format 6
    forms: dict[str, float] | None = None  # mean AUROC over the table of each form that was compared
    power: list[Caught]


class Manifest(_Section):
    """The contents of `bundle.json`, in the order in which they are written."""

    format_version: int
    name: Annotated[str, AfterValidator(_check_name)]
    model: Annotated[ModelConfig, _only_fields_of(ModelConfig)]
    preprocessing: Annotated[Contract, _only_fields_of(Contract)]
    side: int | None = None  # pixels along both sides of an image that is scored densely
    training: dict[str, Any]  # recipe, steps and other settings, for people
    splits: dict[str, Any]  # size and digest of each part of the training data
    evaluation: dict[str, Any] | None = None
    calibration: Calibration
    fit: FitReport | None = None
    files: dict[str, str]  # file name -> sha256

    @model_validator(mode="after")
    def _require_one_shape(self) -> Self:
        height, width, channels = self.preprocessing.shape
        if self.model.data_shape != (channels, height, width):
            raise ValueError(
                f"preprocessing makes images of shape {(channels, height, width)} (C, H, W),"
                f" but the networks take {self.model.data_shape}"
            )
        fold = self.model.fold
        if self.side is not None and (self.side % fold or not 0 < self.side <= MAX_SIDE):
            raise ValueError(f"side is {self.side}, not a multiple of {fold} up to {MAX_SIDE}")
        return self

    def to_json(self) -> bytes:
        """The bytes of `bundle.json`. Equal manifests give equal bytes."""
        return (json.dumps(self.model_dump(), indent=2) + "\n").encode()


def format_of(fitted: Fitted, places: bool) -> int:
    """The format of a bundle with this score. `places`: it has the graph for large images."""
    if fitted.explainer.spots is None:
        return WITHOUT_SPOTS
    levels = len(fitted.explainer.log_energies)
    if fitted.scorer.beside != len(weights_beside(levels)):
        return WITH_FINE_DETAIL
    return FORMAT_VERSION if places else WITHOUT_PLACES


class _Version(_Section):
    format_version: int


def parse_manifest(path: Path, contents: bytes) -> Manifest:
    """Check the contents of the manifest of the bundle in folder `path`.

    The format version is checked first, because other versions may have another schema.

    Raises:
        BundleVersionError: This release does not read the format version.
        BundleError: The contents are not JSON, or a value is missing or has the wrong type.
    """
    version = _parse(_Version, path, contents).format_version
    if not WITHOUT_SPOTS <= version <= FORMAT_VERSION:
        raise BundleVersionError(
            f"{path}: bundle format {version}, this release reads {WITHOUT_SPOTS} to {FORMAT_VERSION};"
            " upgrade ddaebm or export the bundle again"
        )
    return _parse(Manifest, path, contents)


def _parse(kind: type[S], path: Path, contents: bytes) -> S:
    try:
        return kind.model_validate_json(contents)
    except ValidationError as error:
        raise BundleError(
            f"{path / MANIFEST} is not a bundle manifest ({_describe(error)}); copy or export the bundle again"
        ) from error


def _describe(error: ValidationError) -> str:
    """The first few faults in one line, such as `calibration.size: Input should be a valid integer`."""
    faults = [
        ": ".join(filter(None, [".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")]))
        for fault in error.errors(include_url=False, include_input=False)
    ]
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return " ".join("; ".join(faults[:_SHOWN]).split()) + more
