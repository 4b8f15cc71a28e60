"""benchmarks/oneclass: each class is judged against the others, on images that the bundle has not seen."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import oneclass
from tests.model.test_fitting import surfaces


def test_the_whole_on_a_small_bundle(
    debug_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, count, seed in (("train", 60, 0), ("test", 40, 1)):
        woven = surfaces(count, seed)
        classes = {"woven": woven, "striped": np.repeat(woven[:, :1], 16, axis=1)}
        for name, images in classes.items():
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i, image in enumerate(images):
                Image.fromarray(image[..., 0]).save(folder / f"{i:03}.png")
    doc = tmp_path / "doc.md"
    doc.write_text("<!-- oneclass:debug:begin -->\n<!-- oneclass:debug:end -->\n")
    arguments = [str(debug_bundle), "--train", str(tmp_path / "train"), "--test", str(tmp_path / "test")]
    monkeypatch.setattr(sys, "argv", ["oneclass", *arguments, "--doc", str(doc)])
    monkeypatch.setattr(oneclass, "SHOWN", 5)
    oneclass.main()
    table = doc.read_text()
    assert "| detector | mean | striped | woven |" in table
    rows = {
        line.split(" | ")[0]: float(line.split(" | ")[1]) for line in table.splitlines() if line.startswith("| fit")
    }
    assert len(rows) == 3
    assert rows["| fit"] > 0.9
    assert rows["| fit"] in (rows["| fit, small ridge"], rows["| fit, cross-validated ridge"])
    assert "Chosen by the table of faults: small ridge " in capsys.readouterr().out
