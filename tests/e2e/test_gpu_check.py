"""benchmarks/gpu.py where there is no GPU: it says so, and the script itself works."""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT, DOC = ROOT / "benchmarks" / "gpu.py", ROOT / "docs" / "performance.md"


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def gpu_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    before = DOC.read_bytes()
    done = run(PATH=str(tmp_path))  # no nvidia-smi
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "gpu-check: needs an NVIDIA GPU and its driver; nvidia-smi finds none\n"
    assert DOC.read_bytes() == before


def test_on_a_cpu_it_replaces_the_marked_section(debug_bundle: Path, gpu_check: ModuleType, tmp_path: Path) -> None:
    doc = tmp_path / "performance.md"
    original = DOC.read_text()
    doc.write_text(original)
    arguments = ["--device", "cpu", "--bundle", str(debug_bundle), "--doc", str(doc)]
    for batches in (["1"], ["1", "5"]):
        done = run(*arguments, "--seconds", "0", "--rounds", "1", "--batches", *batches)
        assert done.returncode == 0, done.stderr
    before, _, rest = doc.read_text().partition(gpu_check.BEGIN)
    section, _, after = rest.partition(gpu_check.END)
    assert original.startswith(before)
    assert original.endswith(after)
    assert "not been run" not in section
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| ")]
    heads, onnx, torch = rows
    assert heads[2:6] == ["sample 1", "sample 5", "score 1", "score 5"]
    assert onnx[0] == "ONNX Runtime"
    assert onnx[6:] == ["0", "0.0e+00", "0.0e+00"]  # the reference itself
    assert torch[0] == "torch"
    assert all(float(rate.replace(",", "")) > 0 for rate in torch[2:6])


def test_what_is_too_far_is_named(gpu_check: ModuleType) -> None:
    assert gpu_check.too_far(gpu_check.LIMITS) == []
    far = gpu_check.Distance(2, math.nan, 0.005)
    assert gpu_check.too_far(far) == ["grey_levels 2 (limit 1)", "energy nan (limit 0.001)"]


def test_an_engine_that_computes_something_else_is_far(gpu_check: ModuleType, debug_bundle: Path) -> None:
    class Noisy(gpu_check.OnnxEngine):  # type: ignore[misc, name-defined]
        def score(self, images):  # type: ignore[no-untyped-def]
            scores = super().score(images)
            return scores._replace(energies=1.01 * scores.energies)

    bundle = gpu_check.load_bundle(debug_bundle)
    reference = gpu_check.OnnxEngine(bundle, "cpu", 1)
    found = gpu_check.distance(Noisy(bundle, "cpu", 1), reference, 4)
    assert found.grey_levels == 0
    assert found.energy == pytest.approx(0.01, rel=1e-3)
    assert gpu_check.too_far(gpu_check.distance(reference, reference, 1)) == []


def test_a_document_without_marks_is_left_alone(gpu_check: ModuleType, tmp_path: Path) -> None:
    doc = tmp_path / "other.md"
    doc.write_text(f"{gpu_check.END} the wrong way round {gpu_check.BEGIN}")
    before = doc.read_bytes()
    with pytest.raises(SystemExit, match="to write between"):
        gpu_check.write_section(doc, gpu_check.BEGIN, gpu_check.END, "section")
    assert doc.read_bytes() == before


def test_the_preset_is_measured_in_each_precision() -> None:
    script = ROOT / "benchmarks" / "preset.py"
    command = [sys.executable, str(script), "debug", "--device", "cpu", "--batches", "2,3", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith(("| fp32", "| tf32", "| bf16"))]
    assert [(row[1].strip(), int(row[2])) for row in rows] == [(p, b) for p in ("fp32", "tf32", "bf16") for b in (2, 3)]
    assert all(float(row[3]) > 0 and float(row[4]) > 0 for row in rows)
    assert "DDGAN" not in done.stdout  # that is for cifar10 alone
