"""The README and the guides, done word for word by a stranger with a copy of the repository.

Each page is gone through from top to bottom in one folder. A command that serves stays up for those after it.
Docker's commands are in `make docker-test`.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import PATIENCE, REPO, clone, environment, run_here

# The same commands in less time. Each is looked for, so that it goes when the page no longer has it.
SHORTER = {
    "reproduce toy --out runs/toy": "reproduce toy --out runs/toy --steps 20",
    "--out runs/photos --steps 50": "--out runs/photos --steps 2 --set network.num_steps=2",
}
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    text = (REPO / page).read_text()
    return [
        Block(page, text[: match.start()].count("\n") + 1, match[1], match[2])
        for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def commands(page: str) -> list[Block]:
    """Return what a reader would type or run: shell commands one by one, without the output that a `console` shows."""
    found = []
    for block in blocks(page):
        if block.language == "python":
            found.append(block)
        elif block.language in ("sh", "console"):
            lines = block.text.replace("\\\n", " ").splitlines()
            if block.language == "console":
                lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
            found += [block._replace(text=line, language="sh") for line in lines if not line.startswith("docker ")]
    return found


class Stranger:
    """A folder with the repository in it, a port, and at most one service."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (folder / "home").mkdir()
        (folder / "home" / ".curlrc").write_text('fail-with-body\nsilent\nshow-error\nnoproxy = "*"\n')
        (folder / "home" / "python3").symlink_to(shutil.which(f"python3.{sys.version_info.minor}") or sys.executable)
        self.environment = environment(
            DDAEBM_PORT=str(self.port), CURL_HOME=str(folder / "home"),
            PATH=f"{folder / 'home'}{os.pathsep}{os.environ['PATH']}",
        )  # fmt: skip
        self.serving: subprocess.Popen[bytes] | None = None

    def do(self, block: Block) -> str:
        """Run it as it stands, but for the port; what it printed."""
        text = block.text.replace("localhost:8000", f"localhost:{self.port}")
        for long, short in SHORTER.items():
            text = text.replace(long, short)
        if "ddaebm serve" in text or text == "make serve":
            self.serve(text)
            return ""
        if needs_torch(block) and (command := re.fullmatch(r"\.venv/bin/ddaebm ([^|;&><#]*)(#.*)?", text)):
            done = run_here(*shlex.split(command[1]), cwd=self.folder)
            return self._checked(block, text, done)
        words = (
            [".venv/bin/python", "-c", text] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", text]
        )
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=5 * PATIENCE
        )
        return self._checked(block, text, done)

    @staticmethod
    def _checked(block: Block, text: str, done: "subprocess.CompletedProcess[str]") -> str:
        """Return what the command printed."""
        assert done.returncode == 0, f"{block.page}:{block.line}: {text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def serve(self, text: str) -> None:
        self.stop()
        self.serving = subprocess.Popen(["bash", "-c", f"exec {text}"], cwd=self.folder, env=self.environment)
        self.stack.callback(self.stop)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.serving.poll() is None:
            try:
                with _NO_PROXY.open(f"http://127.0.0.1:{self.port}/readyz", timeout=5):
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.05)
        raise AssertionError(f"{text}: not ready, exit code {self.serving.poll()}")

    def stop(self) -> None:
        if self.serving:
            self.serving.terminate()
            assert self.serving.wait(PATIENCE) in (0, -15, 2)  # make itself ends by the signal
            self.serving = None


def form(picture: Path) -> tuple[str, tuple[int, int]]:
    with Image.open(picture) as image:
        return image.mode, image.size


@contextmanager
def stranger(folder: Path, installed: bool) -> Iterator[Stranger]:
    """With `installed`, this run's environment stands in for what `make install` would make."""
    clone(folder)
    if installed:
        (folder / ".venv").symlink_to(sys.prefix)
        for name in ("pyproject.toml", "constraints.txt"):  # older than the environment: make has nothing to do
            os.utime(folder / name, (0, 0))
    with ExitStack() as stack:
        yield Stranger(folder, stack)


def needs_torch(block: Block) -> bool:
    return bool(re.search(r"\bddaebm (train|export|reproduce)\b|\bruns/", block.text))


@pytest.mark.system("a package index")
def test_the_readme_without_make_in_a_fresh_environment(tmp_path: Path) -> None:
    """The two lines for readers without make, then all of the README and of two guides that needs no torch."""
    pages = [*commands("README.md"), *commands("docs/python.md"), *commands("docs/http.md")]
    first = next(i for i, block in enumerate(pages) if block.text.startswith("python3 -m venv"))
    with stranger(tmp_path, installed=False) as reader:
        answers = [
            reader.do(block) for block in pages[first:] if not needs_torch(block) and not block.text.startswith("make ")
        ]
        assert len(answers) == 2 + 1 + 3 + 3 + 2 + 3 + 8 + 1
        assert answers[2].endswith("[False  True]\n(64, 28, 28)\n")
        assert answers[-1] == "made-0.png in\ntests/fixtures/digit.png ood\n"
    assert form(tmp_path / "grid.png") == ("L", (238, 238))
    assert np.load(tmp_path / "samples.npy").shape == (100, 28, 28, 1)
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 1 + 1000 + 2
    assert not list(tmp_path.glob(".venv/lib/*/site-packages/torch"))


def test_the_readme_with_make(tmp_path: Path) -> None:
    """Run the rest of the page: make, and everything that needs torch."""
    with stranger(tmp_path, installed=True) as reader:
        for block in commands("README.md"):
            if block.text in ("make test", "make train-demo"):  # the demo's own commands follow on the page
                printed = reader.do(block._replace(text=block.text.replace("make", "make -n")))
                assert ("pytest" if block.text == "make test" else "ddaebm export runs/debug") in printed
            elif block.text.startswith("make ") or needs_torch(block):
                reader.do(block)
    assert (tmp_path / "runs/toy/figure.png").is_file()


def test_the_scores_that_the_readme_shows_are_those_that_come(tmp_path: Path) -> None:
    (shown,) = [json.loads(block.text) for block in blocks("README.md") if block.language == "json"]
    (request,) = [block for block in commands("README.md") if "v1/scores" in block.text]
    with stranger(tmp_path, installed=True) as reader:
        reader.serve("make serve")
        answer = json.loads(reader.do(request))
    assert answer["digest"].startswith(shown.pop("digest").rstrip("…"))
    for row, result in zip(shown.pop("results"), answer.pop("results"), strict=True):
        assert result.pop("energies") == pytest.approx(row.pop("energies"), abs=0.1)
        assert result.pop("energy_quantiles") == pytest.approx(row.pop("energy_quantiles"), abs=0.01)
        assert result.pop("ood_score") == pytest.approx(row.pop("ood_score"), abs=0.1)
        assert result.pop("p_value") == pytest.approx(row.pop("p_value"), abs=1e-3)
        assert result == row
    assert answer.items() >= shown.items()


def test_your_own_images(tmp_path: Path) -> None:
    """The walk from a folder to a service, on 120 small pictures of shaded colours."""
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(120):
        ramp = np.linspace(0, 1, 16)[:, None, None] * rng.integers(0, 256, (1, 16, 3))
        Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "photos" / ("deep" if i % 2 else "") / f"{i}.png")
    with stranger(tmp_path, installed=True) as reader:
        for block in commands("docs/your-images.md"):
            reader.do(block)
    assert form(tmp_path / "grid.png") == ("RGB", (70, 70))
    assert form(tmp_path / "made.png") == ("RGB", (16, 16))
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 1 + 120 + 100


@pytest.mark.parametrize("command", SHORTER)
def test_what_is_shortened_is_still_there(command: str) -> None:
    pages = [REPO / "README.md", *(REPO / "docs").glob("*.md")]
    assert any(command in page.read_text() for page in pages)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (REPO / "docs").glob("*.md"))])
def test_every_link_to_a_file_leads_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", (REPO / page).read_text())
    missing = [target for target in targets if not ((REPO / page).parent / target).exists()]
    assert missing == []
