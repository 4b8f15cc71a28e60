"""`ddaebm sample` as a process: the images, resuming, and two processes at a time."""

import base64
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddaebm.model.images.encode import make_grid
from ddaebm.model.noise import image_seeds
from tests.e2e.conftest import COMMAND, Cli, Running, check_failure, environment, wait_until
from tests.e2e.test_cli import pixels


def test_sample_makes_the_same_images_as_the_service(
    cli: Cli, service: Running, debug_bundle: Path, tmp_path: Path
) -> None:
    response = service.client.post("/v1/samples", json={"n": 70, "seed": 5})
    served = np.stack([pixels(base64.b64decode(image["image"])) for image in response.json()["images"]])[..., None]

    done = cli("sample", "--bundle", debug_bundle, "-n", 70, "--seed", 5, "--out", "made.npy")
    assert (done.returncode, done.stderr) == (0, "")
    made = np.load(tmp_path / "made.npy")
    assert (made.dtype, made.shape) == (np.uint8, (70, 16, 16, 1))
    assert (made == served).all()
    assert [image["seed"] for image in response.json()["images"]] == image_seeds(5, 70).tolist()

    assert cli("sample", "--bundle", debug_bundle, "-n", 70, "--seed", 5, "--out", "made.png").returncode == 0
    assert (pixels((tmp_path / "made.png").read_bytes()) == make_grid(served)[..., 0]).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.npy", "made.png"]


def test_two_processes_do_not_write_the_same_samples(cli: Cli, debug_bundle: Path, tmp_path: Path) -> None:
    arguments = ["sample", "--bundle", str(debug_bundle), "-n", "200000", "--out"]
    for out, trace in (("made.zip", ".made.zip.*.partial"), ("made", "made/*.png")):
        with subprocess.Popen([*COMMAND, *arguments, out], cwd=tmp_path, env=environment()) as first:
            wait_until(lambda trace=trace: any(path.stat().st_size for path in tmp_path.glob(trace)))
            check_failure(cli(*arguments, out), 2, "another process is writing", out)
            first.kill()


def test_sampling_that_is_interrupted_says_that_it_can_go_on(debug_bundle: Path, tmp_path: Path) -> None:
    command = [*COMMAND, "sample", "--bundle", str(debug_bundle), "-n", "200000", "--out", "made.zip"]
    # A suite that was started in the background hands down that SIGINT is ignored.
    command = [sys.executable, "-c", "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
               " os.execv(sys.argv[1], sys.argv[1:])", *command]  # fmt: skip
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: any(path.stat().st_size for path in tmp_path.glob(".made.zip.*.partial")))
        process.send_signal(signal.SIGINT)
        assert process.stderr
        assert process.stderr.read() == "made.zip: stopped; the same command resumes\n"
    assert process.returncode == 130


@pytest.mark.parametrize("out", ["made.zip", "made.npy", "made"])
def test_sampling_that_was_killed_goes_on_to_the_same_bytes(
    cli: Cli, debug_bundle: Path, tmp_path: Path, out: str
) -> None:
    (tmp_path / "whole").mkdir()
    assert cli("sample", "--bundle", debug_bundle, "-n", 3000, "--seed", 9, "--out", f"whole/{out}").returncode == 0

    def progress() -> int:
        spools = sum(path.stat().st_size // 256 for path in tmp_path.glob(".made.*.partial"))
        return spools + len(list(tmp_path.glob("made/*.png")))

    arguments = ["sample", "--bundle", str(debug_bundle), "-n", "3000", "--seed", "9", "--out", out]
    with subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, env=environment(DDAEBM_THREADS="1")) as process:
        wait_until(lambda: progress() >= 128)
        process.kill()
    assert not (tmp_path / out).is_file()
    assert 128 <= progress() < 3000
    assert cli(*arguments).returncode == 0

    whole, resumed = tmp_path / "whole" / out, tmp_path / out
    if whole.is_dir():
        assert [path.name for path in sorted(resumed.iterdir())] == [path.name for path in sorted(whole.iterdir())]
        assert all((resumed / path.name).read_bytes() == path.read_bytes() for path in whole.iterdir())
    else:
        assert resumed.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["whole", out])


def test_a_folder_of_other_samples_is_not_mixed_with_these(cli: Cli, debug_bundle: Path, tmp_path: Path) -> None:
    assert cli("sample", "--bundle", debug_bundle, "-n", 2, "--out", "made").returncode == 0
    assert cli("sample", "--bundle", debug_bundle, "-n", 3, "--out", "made").returncode == 0  # more of the same
    assert len(list((tmp_path / "made").glob("*.png"))) == 3
    done = cli("sample", "--bundle", debug_bundle, "-n", 2, "--seed", 1, "--out", "made")
    check_failure(done, 2, "another bundle or seed")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.png").touch()
    check_failure(cli("sample", "--bundle", debug_bundle, "--out", "photos"), 2, "not empty")


def test_sampling_leaves_no_half_a_file_behind(cli: Cli, debug_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(debug_bundle, bundle)
    (bundle / "sampler.onnx").unlink()
    check_failure(cli("sample", "--bundle", bundle, "--out", "x.png"), 1, "sampler.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
