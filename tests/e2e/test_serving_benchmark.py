"""benchmarks/serving.py: it runs, names what is missing, counts wrong answers, and leaves no process."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs" / "performance.md"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*arguments: object, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks.serving", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT)


def test_servers_are_measured_and_those_that_are_missing_are_named(debug_bundle: Path, tmp_path: Path) -> None:
    out, doc, plot = tmp_path / "found.json", tmp_path / "performance.md", tmp_path / "plot.png"
    original = DOC.read_text()
    doc.write_text(original)
    # This environment has FastAPI, and none of the others.
    done = run(
        "--bundle", debug_bundle, "--peers", "litserve,fastapi", "--peers-python", sys.executable, "--workers", 1,
        "--seconds", 0.1, "--rounds", 1, "--out", out, "--doc", doc, "--plot", plot,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert list(found["failures"]) == ["litserve"]
    assert "No module named 'litserve'" in found["failures"]["litserve"][0]
    assert "LitServe: not run: ModuleNotFoundError: No module named 'litserve'" in done.stdout
    (round_,) = found["rounds"]
    assert list(round_["servers"]) == ["ddaebm", "fastapi"]
    for server in round_["servers"].values():
        closed, opened = server["closed"].values(), server["open"].values()
        assert (len(closed), len(opened)) == (7, 4)
        assert [case["errors"] for case in (*closed, *opened)] == [{}] * 11
        assert all(case["images_per_second"] > 0 and case["cpu_seconds_per_1000"] > 0 for case in closed)
        assert all(case["peak_rss_mib"] > case["pss_mib"] > 50 for case in closed)
        assert server["closed"]["64 images, 8 clients"]["images"] % 64 == 0
    before, _, rest = doc.read_text().partition("<!-- serving:begin -->")
    section, _, after = rest.partition("<!-- serving:end -->")
    assert "| 64 images, 8 clients | FastAPI, threads |" in section
    assert original.startswith(before)
    assert original.endswith(after)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_peer_that_does_not_exist_is_refused() -> None:
    done = run("--peers", "litserve,triton", timeout=60)
    assert done.returncode == 2
    assert "no triton; there are litserve, ray, bentoml, fastapi" in done.stderr


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno", "503"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno", "not a PNG"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n\x89PNG\r\n\x1a\n", "not a PNG"),  # cut off
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "no Content-Length"),
        (b"", "connection closed"),
    ],
)
@pytest.mark.parametrize("rate", [0, 40])
def test_the_load_counts_wrong_answers(answer: bytes, fault: str, rate: float, tmp_path: Path) -> None:
    pngs = tmp_path / "pngs.json"
    pngs.write_text("[]")
    seeds: list[int] = []

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await read_head(reader):
            length = int(head.partition(b"Content-Length: ")[2])
            seeds.append(json.loads(await reader.readexactly(length))["seed"])
            writer.write(answer)
            if not answer:
                break
        writer.close()

    async def drive() -> dict[str, Any]:
        server = await asyncio.start_server(respond, "127.0.0.1", 0)
        case = {
            "port": server.sockets[0].getsockname()[1], "kind": "sample", "images": 1, "clients": 2,
            "seconds": 0.3, "rate": rate, "pngs": str(pngs), "first_seed": 5,
        }  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.peers.load", json.dumps(case)]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, env=ENVIRONMENT)
        printed, _ = await asyncio.wait_for(process.communicate(), 60)
        server.close()
        assert process.returncode == 0
        found: dict[str, Any] = json.loads(printed)
        return found

    found = asyncio.run(drive())
    assert list(found["errors"]) == [fault]
    assert (found["images"], found["p99_ms"]) == (0, None)
    assert sum(found["errors"].values()) == len(seeds) == len(set(seeds))


async def read_head(reader: asyncio.StreamReader) -> bytes:
    try:
        return (await reader.readuntil(b"\r\n\r\n"))[:-4]
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


CHILDREN = """
import subprocess, sys
from pathlib import Path
from benchmarks.peers.servers import Kind, Server, ServerError, adopt_orphans
adopt_orphans()
server = Server(Kind("it", "it", sys.argv[1]), sys.executable, {}, Path(sys.argv[2]))
try:
    server.wait()
except ServerError as error:
    print(error)
print(len(server.processes()))
server.stop()
print(len(server.processes()))
"""


def test_a_server_that_ends_is_noticed_and_its_daemons_are_killed(tmp_path: Path) -> None:
    script = tmp_path / "failing.py"  # leaves a daemon in a session of its own, as Ray does
    script.write_text(
        "import subprocess\nsubprocess.Popen(['sleep', '1000'], start_new_session=True)\nraise SystemExit('no luck')"
    )
    command = [sys.executable, "-c", CHILDREN, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["ended with 1: no luck", "1", "0"]


def test_what_the_service_adds_to_one_image_is_measured(debug_bundle: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.overhead", "--bundle", str(debug_bundle), "--count", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    rows = {cells[1].strip(): [float(cell) for cell in cells[2:5]] for cells in (
        line.split("|") for line in done.stdout.splitlines()[4:]
    )}  # fmt: skip
    assert rows.keys() == {"over HTTP", "raw", "added"}
    assert all(low <= middle <= high for low, middle, high in rows.values())
    assert min(rows["over HTTP"] + rows["raw"]) > 0
