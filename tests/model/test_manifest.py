"""Manifests: every wrong field is named in one line."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddaebm.model.bundle import MANIFEST, load_bundle
from ddaebm.model.errors import (
    BundleError,
    BundleVersionError,
)
from ddaebm.model.manifest import FORMAT_VERSION
from tests.model import test_bundle
from tests.model.test_bundle import CONFIG, edit

bundle = test_bundle.bundle  # the fixture


@pytest.mark.parametrize(
    "contents",
    [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe", b"{}", b'{"format_version": "1", "files": {}}',
     b'{"format_version": 6, "files": []}', b"[" * 100_000],
    ids=["empty", "cut", "list", "null", "number", "not text", "no fields", "version", "files", "deep"],
)  # fmt: skip
def test_a_manifest_that_is_none_is_a_bundle_error(bundle: Path, contents: bytes) -> None:
    (bundle / MANIFEST).write_bytes(contents)
    with pytest.raises(BundleError, match="not a bundle manifest"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("name"),
        lambda m: m.pop("splits"),
        lambda m: m["model"].update(num_steps=0),
        lambda m: m["model"].update(unheard_of=1),
        lambda m: m.update(model=None),
        lambda m: m["preprocessing"].update(channels=2),
        lambda m: m["preprocessing"].update(unheard_of=1),
        lambda m: m.update(preprocessing=[]),
        lambda m: m["files"].update({"README.md": 5}),
    ],
    ids=["name", "splits", "steps", "model field", "model", "channels", "contract field", "contract", "hash"],
)
def test_a_manifest_with_a_senseless_field_is_a_bundle_error(
    bundle: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("section", "value", "fault"),
    [
        ("name", 5, "name: Input should be a valid string"),
        ("model.num_steps", "4", "model.num_steps: Input should be a valid integer"),
        ("model.num_steps", 4.0, "model.num_steps: Input should be a valid integer"),
        ("model.widths", "32", "model.widths: Input should be a valid array"),
        ("model.pyramid", 1, "model.pyramid: Input should be a valid boolean"),
        ("model.data_shape", [1, 16, 8], r"the networks take \(1, 16, 8\)"),
        ("model.data_shape", [256], r"the networks take \(256,\)"),
        ("model.unheard_of", 1, "model: unknown fields: unheard_of"),
        ("preprocessing.height", "16", "preprocessing.height: Input should be a valid integer"),
        ("preprocessing.height", True, "preprocessing.height: Input should be a valid integer"),
        ("preprocessing.resize_filter", None, "preprocessing.resize_filter: Input should be a valid string"),
        ("preprocessing.unheard_of", 1, "preprocessing: unknown fields: unheard_of"),
        ("training", [], "training: Input should be an object"),
        ("splits", "all", "splits: Input should be an object"),
        ("evaluation", [], "evaluation: Input should be an object"),
        ("calibration", None, "calibration: Input should be an object"),
        ("calibration.size", "10", "calibration.size: Input should be a valid integer"),
        ("calibration.smallest_p", "0.1", "calibration.smallest_p: Input should be a valid number"),
        ("calibration.images", [], "calibration.images: Input should be an object"),
        ("calibration.of", [], "calibration.of: Input should be an object"),
        ("fit", [], "fit: Input should be an object"),
        ("fit", {"fitted": 5, "calibrated": 5, "alpha": 0.1}, "fit.power: Field required"),
        ("fit", {"fitted": "5", "calibrated": 5, "alpha": 0.1, "power": []}, "fit.fitted: Input should be a valid int"),
        ("fit", {"fitted": 5, "calibrated": 5, "alpha": 0.1, "power": [{"fault": "hole"}]}, "fit.power.0.severity"),
        ("files.README\\.md", 5, r"files.README.md: Input should be a valid string"),
    ],
)
def test_a_wrong_type_in_a_manifest_section_is_named_in_one_line(
    bundle: Path, section: str, value: object, fault: str
) -> None:
    *parents, key = [part.replace("\\.", ".") for part in re.split(r"(?<!\\)\.", section)]

    def change(manifest: dict[str, Any]) -> None:
        for parent in parents:
            manifest = manifest[parent]
        manifest[key] = value

    edit(bundle, change)
    with pytest.raises(BundleError, match=f"is not a bundle manifest .*{fault}.*export the bundle again") as raised:
        load_bundle(bundle)
    assert "\n" not in str(raised.value)
    assert "pydantic" not in str(raised.value)


def test_a_message_lists_three_of_many_faults(bundle: Path) -> None:
    (bundle / MANIFEST).write_text(f'{{"format_version": {FORMAT_VERSION}}}')
    with pytest.raises(BundleError, match=r"\(name: Field required; .*; preprocessing: Field required; and 4 more\)"):
        load_bundle(bundle)


def test_another_version_is_reported_before_any_other_fault(bundle: Path) -> None:
    (bundle / MANIFEST).write_text('{"format_version": 99, "files": ["a"], "name": 5}')
    with pytest.raises(BundleVersionError, match="format 99"):
        load_bundle(bundle)


def test_unknown_keys_outside_model_and_preprocessing_are_ignored(bundle: Path) -> None:
    edit(bundle, lambda m: (m.update(note="mine"), m["calibration"].update(note="mine"), m["training"].update(a=[1])))
    assert load_bundle(bundle).training == {"recipe": "debug", "a": [1]}


def test_a_manifest_holds_these_bytes(bundle: Path) -> None:
    """The format on disk: key order, indentation and number format decide the digest of a bundle."""
    contents = (bundle / MANIFEST).read_bytes()
    manifest = json.loads(contents)
    assert contents == (json.dumps(manifest, indent=2) + "\n").encode()
    assert list(manifest) == ["format_version", "name", "model", "preprocessing", "side", "training", "splits",
                              "evaluation", "calibration", "fit", "files"]  # fmt: skip
    assert manifest["model"] == json.loads(json.dumps(CONFIG.to_dict()))
    assert list(manifest["model"]) == list(CONFIG.to_dict())
    assert manifest["preprocessing"] == {"height": 16, "width": 16, "channels": 1, "resize_filter": "bicubic"}
    assert list(manifest["calibration"]) == ["size", "smallest_p", "images", "of"]
    assert manifest["evaluation"] is None
    assert manifest["fit"] is None
