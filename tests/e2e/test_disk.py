"""Odd folders, streams and environments: nothing is lost, and nothing is left out in silence."""

import errno
import re
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddaebm.model.bundle import load_bundle
from ddaebm.training import checkpoint
from ddaebm.training.step import make_state
from tests.e2e.conftest import COMMAND, PATIENCE, Cli, check_failure, environment, wait_until

LIKE_NOTHING = np.random.default_rng(0).integers(256, size=(80, 16, 16), dtype=np.uint8)


def photos(folder: Path, count: int = 80) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(LIKE_NOTHING[i]).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The run that `ddaebm train images --data photos --out run` makes, at step 0."""
    from ddaebm.training.run import prepare_run

    photos(tmp_path / "photos")
    prepared = prepare_run("images", tmp_path / "run", {"data": str(tmp_path / "photos")})
    checkpoint.write_config(tmp_path / "run", prepared.config)
    checkpoint.save(tmp_path / "run", make_state(prepared.config), prepared.config)
    return tmp_path / "run"


@pytest.mark.parametrize("command", ["export run --out bundle", "train images --out run --resume",
                                     "evaluate run --data photos"])  # fmt: skip
@pytest.mark.parametrize("how", ["added", "deleted"])
def test_images_that_changed_since_the_run_began_are_named(
    call: Cli, trained: Path, tmp_path: Path, command: str, how: str
) -> None:
    if how == "added":
        Image.fromarray(255 - LIKE_NOTHING[0]).save(tmp_path / "photos" / "new.png")
    else:
        (tmp_path / "photos" / "33.png").unlink()
    name = "new.png" if how == "added" else "33.png"
    check_failure(call(*command.split()), 1, "not the images that", name)
    assert not (tmp_path / "bundle").exists()


def test_a_run_inside_its_data_does_not_read_its_own_samples(call: Cli, tmp_path: Path) -> None:
    run = photos(tmp_path / "photos") / "run"
    tiny = "--set network.widths=8 --set network.norm_groups=2 --set sample_every=1 --set checkpoint_every=1"
    train = f"train images --data photos --out photos/run --steps 1 --set batch_size=4 {tiny}".split()
    assert call(*train).returncode == 0
    assert list(run.glob("samples/*.png"))
    again = call(*train, "--resume", "--steps", 2)
    assert again.returncode == 0, again.stderr
    assert "80 images" not in again.stderr
    check_failure(call(*train, "--resume", "--size", 8), 2, "16x16", "--size")
    check_failure(call(*train, "--resume", "--channels", 3), 2, "1 channels", "--channels")
    check_failure(
        call(*train, "--resume", "--start", "fashion-mnist"), 2, "did not begin with fashion-mnist", "--start"
    )
    assert call(*train, "--resume", "--size", "16x16", "--channels", 1, "--steps", 2).returncode == 0


@pytest.mark.parametrize(
    "command", ["train debug --out mine", "reproduce toy --out mine", "sample --out mine", "export run --out mine",
                "calibrate fashion-mnist --data photos --out mine"]
)  # fmt: skip
def test_files_of_somebody_else_are_not_mixed_with_ours(call: Cli, tmp_path: Path, command: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text('{"my": "settings"}')
    (tmp_path / "mine" / "metrics.json").write_text("my numbers")
    done = call(*command.split())
    assert done.returncode in (1, 2)
    assert "mine is not empty" in done.stderr
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["config.json", "metrics.json"]
    assert (tmp_path / "mine" / "config.json").read_text() == '{"my": "settings"}'


@pytest.mark.parametrize("suffix", [".png", ".npy", ".zip"])
def test_a_folder_with_the_suffix_of_a_file_is_told_before_the_work(call: Cli, tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"made{suffix}").mkdir()
    check_failure(call("sample", "--out", f"made{suffix}", "-n", 10**6), 2, f"made{suffix} is a folder")


@pytest.mark.parametrize("command", [
    "train debug --out file/run", "export run --out file/bundle", "reproduce toy --out file/toy",
    "calibrate fashion-mnist --data missing --out file/gate", "classifier missing --out file/c.safetensors",
])  # fmt: skip
def test_a_place_that_cannot_be_written_is_told_before_the_work(call: Cli, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").touch()
    check_failure(call(*command.split()), 1, "file", "Not a directory")


def test_a_link_to_a_bundle_is_followed_again_and_again(call: Cli, debug_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "gate").symlink_to("disk/gate")
    images = photos(tmp_path / "photos", 40)
    for name in ("first", "second"):
        done = call("calibrate", debug_bundle, "--data", images, "--out", "gate", "--name", name)
        assert done.returncode == 0, done.stderr
        assert load_bundle(tmp_path / "disk" / "gate").name == name
    assert (tmp_path / "gate").is_symlink()


@pytest.mark.parametrize("name", ["a/b", "", "é"])
def test_a_name_that_a_bundle_cannot_have_is_told_before_the_work(call: Cli, tmp_path: Path, name: str) -> None:
    done = call("calibrate", "fashion-mnist", "--data", "missing", "--out", "gate", "--name", name)
    check_failure(done, 1 if name else 2, "cannot be named" if name else "an argument is empty")


EMPTY = ["score|", "score|a.png|", "sample|--out|", "train|debug|--out|", "train|images|--out|run|--data=",
         "calibrate|fashion-mnist|--data||--out|gate", "export||--out|b", "serve|--bundle|",
         "evaluate|run|--data|"]  # fmt: skip


@pytest.mark.parametrize("command", EMPTY)
def test_an_empty_argument_is_not_the_working_directory(call: Cli, tmp_path: Path, command: str) -> None:
    photos(tmp_path / "in", 3)
    done = call(*command.split("|"))
    assert done.returncode == 2
    assert "an argument is empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


# Streams


def test_names_that_cannot_be_shown_are_escaped(cli: Cli, debug_bundle: Path, tmp_path: Path) -> None:
    names = ["café.png", "snow ☃.png", "broken \udcff.png", "line\nin  0.9  all is well.png", "red \x1b[31m.png"]
    for name in names:
        Image.fromarray(LIKE_NOTHING[0]).save(tmp_path / name)
    for form in ("table", "csv", "json"):
        done = cli("score", "--bundle", debug_bundle, ".", "--format", form, PYTHONIOENCODING="ascii")
        assert done.returncode == 0, done.stderr
        shown = done.stdout.replace("\\u00e9", "\\xe9").replace("\\xe9", "é").replace("\\u2603", "☃")
        assert "café.png" in shown
        assert "snow ☃.png" in shown
        assert "\\udcff" in shown
        if form == "table":
            assert len(done.stdout.splitlines()) == 1 + len(names)
            assert "\x1b" not in done.stdout
    done = cli("score", "--bundle", debug_bundle, "line\nin.png")
    check_failure(done, 1, "line\\nin.png")


CLOSED = ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"]


@pytest.mark.parametrize("closed", CLOSED)
def test_closed_streams_keep_exit_codes_and_files(debug_bundle: Path, tmp_path: Path, closed: str) -> None:
    """The next file that is opened gets the number of a closed stream. What is printed must not end in it."""
    Image.fromarray(LIKE_NOTHING[0]).save(tmp_path / "a.png")
    command = " ".join(COMMAND)
    bundle = f"--bundle {debug_bundle}"
    for words, code in ((f"score a.png {bundle}", 0), (f"score --fail-on-ood a.png {bundle}", 3),
                        ("score missing.png", 1), ("score --alpha 7 a.png", 2),
                        (f"sample --out made.npy -n 3 {bundle}", 0)):  # fmt: skip
        done = subprocess.run(["bash", "-c", f"{command} {words} {closed}"], cwd=tmp_path, env=environment(),
                              capture_output=True, text=True, timeout=2 * PATIENCE)  # fmt: skip
        assert done.returncode == code, (words, done.stderr)
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
    assert np.load(tmp_path / "made.npy").shape == (3, 16, 16, 1)


def test_a_service_with_closed_streams_serves_and_ends_with_0(debug_bundle: Path, tmp_path: Path) -> None:
    command = f"exec {' '.join(COMMAND)} serve --bundle {debug_bundle} --port 0 <&- >&- 2>&-"
    with subprocess.Popen(["bash", "-c", command], cwd=tmp_path, env=environment()) as process, ExitStack() as stack:
        stack.callback(process.kill)
        listening = Path(f"/proc/{process.pid}/net/tcp")
        wait_until(lambda: process.poll() is None and sockets_of(process.pid) and listening.exists())
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def sockets_of(pid: int) -> bool:
    """Return True if a process has a socket that listens (state 0A)."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes |= set(re.findall(r"socket:\[(\d+)\]", str(descriptor.readlink())))
        except OSError:  # closed meanwhile
            continue
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return any(row[3] == "0A" and row[9] in inodes for row in rows)


def test_a_full_stdout_is_an_error_that_names_it(debug_bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(LIKE_NOTHING[0]).save(tmp_path / "a.png")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, "score", "a.png", "--bundle", str(debug_bundle)], cwd=tmp_path, stdout=full,
                              env=environment(), stderr=subprocess.PIPE, text=True, timeout=2 * PATIENCE)  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ddaebm: [Errno 28] No space left on device: 'standard output'"
    assert "Traceback" not in done.stderr


LIMIT = "ulimit -f 1; exec"  # a file may have 1,024 bytes: as a full disk, but for the number of the error
FULL = [
    ("sample --out made.npy -n 20", "made.npy"), ("sample --out made.png -n 64", "made.png"),
    ("sample --out made.zip -n 20", "made.zip"), ("train debug --out run --steps 1", "run"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "named"), FULL, ids=[row[1] for row in FULL])
def test_a_full_disk_is_an_error_that_names_the_file(
    debug_bundle: Path, tmp_path: Path, command: str, named: str
) -> None:
    options = f"--bundle {debug_bundle}" if command.startswith("sample") else "--device cpu"
    done = subprocess.run(["bash", "-c", f"{LIMIT} {' '.join(COMMAND)} {command} {options}"], cwd=tmp_path,
                          env=environment(), capture_output=True, text=True, timeout=3 * PATIENCE)  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"ddaebm: [Errno {errno.EFBIG}] File too large: '")
    assert named in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


# Environments


def test_an_env_file_of_another_program_is_named(call: Cli, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"NAME=caf\xe9\nDDAEBM_PORT=7\n")
    check_failure(call("serve", "--print-settings"), 2, ".env is not UTF-8 text")


def test_the_addresses_that_kubernetes_sets_are_ignored(cli: Cli) -> None:
    done = cli("serve", "--print-settings", DDAEBM_PORT="tcp://10.0.0.1:8000", DDAEBM_SERVICE_HOST="10.0.0.1",
               DDAEBM_SERVICE_PORT="8000", DDAEBM_PORT_8000_TCP="tcp://10.0.0.1:8000", DDAEBM_HOSTS="x")  # fmt: skip
    assert done.returncode == 0
    assert "DDAEBM_PORT=8000  " in done.stdout
    warning, other = done.stderr.splitlines()
    assert warning.startswith("DDAEBM_PORT=tcp://10.0.0.1:8000 is ignored")
    assert "enableServiceLinks: false" in warning
    assert other.startswith("ddaebm: DDAEBM_HOSTS is not a setting")


def test_a_port_that_is_no_number_is_still_refused(cli: Cli) -> None:
    check_failure(cli("serve", "--print-settings", DDAEBM_PORT="http://x"), 2, "DDAEBM_PORT")


def test_sighup_during_the_start_does_not_end_the_service(debug_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output, ExitStack() as stack:
        process = subprocess.Popen([*COMMAND, "serve", "--bundle", str(debug_bundle), "--port", "0"], stderr=output,
                                   cwd=tmp_path, env=environment())  # fmt: skip
        stack.callback(process.wait, PATIENCE)
        stack.callback(process.kill)
        ignored = 1 << (signal.SIGHUP - 1)
        wait_until(lambda: hangup_mask(process.pid) & ignored)  # until then Python itself is starting
        while "running on" not in log.read_text():
            process.send_signal(signal.SIGHUP)
            time.sleep(0.01)
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        for _ in range(20):
            process.send_signal(signal.SIGHUP)
        assert process.wait(PATIENCE) == 0


def hangup_mask(pid: int) -> int:
    """Signals that a process ignores or handles, as bits."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"SigIgn:\s*(\w+)", status)[0], 16) | int(re.findall(r"SigCgt:\s*(\w+)", status)[0], 16)
