"""A fake engine, the app on it, and what the tests of the service send."""

import asyncio
import base64
import gc
import io
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from ddaebm.model.images.contract import Contract
from ddaebm.model.images.encode import encode_png
from ddaebm.model.ood.explain import fit_explainer
from ddaebm.model.ood.levels import Explained, Scores
from ddaebm.model.ood.pixels import Pixels
from ddaebm.model.ood.scoring import Scorer
from ddaebm.service.app import create_app
from ddaebm.service.queue.batching import Batcher
from ddaebm.service.queue.scheduling import Arrays
from ddaebm.service.settings import Settings

SPOT = 250  # grey level above which the fake engine has a spot as the reason, with the box [2, 1, 3, 4]
PATIENCE = 10.0  # seconds that a test waits for what should take milliseconds

Rows = NDArray[np.int64]
MakeClient = Callable[..., TestClient]
PROBLEM_MEMBERS = {"type", "title", "status", "detail", "instance", "error", "request_id"}


class FakeEngine:
    """Images that are noise of their seed; a score that is the mean pixel, calibrated by 0, 1, …, 98."""

    digest = "0f" * 32
    backend = "fake-cpu"
    workers = 1
    num_steps = 4
    contract = native = Contract(8, 6, 1)
    side = None
    scorer = Scorer(
        np.zeros(1), np.eye(1), np.zeros((0, 1)), np.arange(99.0), np.empty((0, 2))
    )  # the smallest p is 0.01
    explainer = fit_explainer(
        np.outer(np.arange(1, 101), np.arange(1, 5)), Pixels(*np.ones((5, 4, 8, 6), np.float32)), None
    )

    fit = None

    def __init__(self, name: str = "fake") -> None:
        self.name = name
        self.calls: list[tuple[str, int]] = []  # operation, rows
        self.warmed_up = 0
        self.fault: BaseException | None = None  # raised by the next call
        self.entered = threading.Event()  # a call is under way
        self._gate = threading.Event()  # calls return while it is set
        self._gate.set()

    def sample(self, seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
        self._enter("sample", len(seeds))
        return np.stack([pixels_of(int(seed)) for seed in seeds])

    def score(self, images: NDArray[np.uint8]) -> Scores:
        self._enter("score", len(images))
        assert images.dtype == np.uint8
        assert images.shape[1:] == self.contract.shape
        level = images.reshape(len(images), -1).mean(1)
        energies = np.outer(level, np.arange(1, 1 + self.num_steps)).astype(np.float32)
        box = np.where(level[:, None] > SPOT, [2, 1, 3, 4], 0)
        return Scores(energies, level, self.scorer.p_value(level), box)

    def explain(self, images: NDArray[np.uint8]) -> Explained:
        """All of the heat is in the first pixel."""
        scores = self.score(images)
        self.calls[-1] = ("explain", len(images))
        heat = np.zeros((len(images), *self.contract.shape[:2]))
        heat[:, 0, 0] = scores.ood_score
        return Explained(*scores, heat)

    def warm_up(self, max_batch: int) -> None:
        self.warmed_up = max_batch

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """Calls do not return until the block ends."""
        self.entered.clear()
        self._gate.clear()
        try:
            yield
        finally:
            self._gate.set()

    def release(self) -> None:
        self._gate.set()

    def _enter(self, operation: str, rows: int) -> None:
        self.calls.append((operation, rows))
        self.entered.set()
        assert self._gate.wait(PATIENCE)
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault


class Squares:
    """An operation that records what it was called with, and holds back while its gate is shut."""

    kind = "square"
    weight = 1

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.open = True
        self.fault: BaseException | None = None

    def __call__(self, rows: Rows) -> Arrays:
        self.calls.append(rows.tolist())
        self.entered.release()
        if not self.open:
            assert self.gate.acquire(timeout=PATIENCE)
        if self.fault:
            fault, self.fault = self.fault, None
            raise fault
        return rows**2, -rows

    def shut(self) -> None:
        self.open = False

    def wait_for_call(self) -> None:
        assert self.entered.acquire(timeout=PATIENCE)

    def reopen(self) -> None:
        self.open = True
        self.gate.release()


def pixels_of(seed: int) -> NDArray[np.uint8]:
    """Return the image that the fake engine makes of a seed."""
    return np.random.default_rng(seed).integers(256, size=FakeEngine.contract.shape, dtype=np.uint8)


def png(level: int = 0, height: int = 8, width: int = 6) -> bytes:
    return encode_png(np.full((height, width, 1), level, dtype=np.uint8))


def files(*contents: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    """Multipart files `images`, named 0.png, 1.png, …"""
    return [("images", (f"{i}.png", data)) for i, data in enumerate(contents)]


def from_base64(text: str) -> NDArray[np.uint8]:
    return read_png(base64.b64decode(text))


def read_png(data: bytes) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(data), formats=["PNG"])
    return np.asarray(image).reshape(image.height, image.width, -1)


def check_problem(response: Any, status: int, slug: str | None = None) -> dict[str, Any]:
    """The response is a whole problem of this status; returns its body."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body.keys() >= PROBLEM_MEMBERS
    assert body["status"] == status
    assert body["detail"] == body["error"]
    assert body["error"]
    assert body["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    if slug:
        assert body["type"] == f"urn:ddaebm:error:{slug}"
    return body


def metric(client: TestClient, name: str, **labels: str) -> float:
    """A sample's value on the metrics page, 0 where there is none."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = (sample for family in families for sample in family.samples)
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def rows(*values: int) -> Rows:
    return np.array(values, dtype=np.int64)


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run `test`; at its end no future holds an exception that nobody has seen.

    Such a future reports it whenever it is collected, which in the middle of an import can end the whole session.
    """
    with unseen_exceptions() as unseen:
        asyncio.run(asyncio.wait_for(test, 2 * PATIENCE))
        gc.collect()
    assert not unseen


@contextmanager
def unseen_exceptions() -> Iterator[list[str]]:
    """Collect what asyncio logs in the block about exceptions that were never retrieved."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "never retrieved" in record.getMessage():
                found.append(record.getMessage())

    handler = Handler()
    logging.getLogger("asyncio").addHandler(handler)
    try:
        yield found
    finally:
        logging.getLogger("asyncio").removeHandler(handler)


async def in_thread(function: Callable[[], object]) -> None:
    """Wait for the inference thread while the event loop goes on."""
    await asyncio.to_thread(function)


async def occupy(batcher: Batcher, operation: Squares) -> asyncio.Future[Arrays]:
    """Put the thread into a call of one row that lasts until `operation.reopen`."""
    operation.shut()
    job = batcher.submit(operation, rows(0))
    await in_thread(operation.wait_for_call)
    return job.future


def wait_until(condition: Callable[[], object]) -> None:
    """For what announces itself by no event."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the developer's environment nor a .env in the working directory."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"DDAEBM_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    fake = FakeEngine()
    yield fake
    fake.release()


@pytest.fixture
def make_client(engine: FakeEngine) -> Iterator[MakeClient]:
    """Starts an app on `engine` with the settings given."""
    with ExitStack() as stack:
        stack.callback(engine.release)  # called first: before the apps drain

        def start(**settings: Any) -> TestClient:
            made = Settings(**{"workers": 1, **settings})  # the fake engine takes one call at a time
            client = TestClient(create_app(made, engine), raise_server_exceptions=False)
            stack.enter_context(client)
            stack.callback(engine.release)
            return client

        yield start


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    return make_client()


@pytest.fixture
def operation() -> Squares:
    return Squares()


@pytest.fixture
def batcher(operation: Squares) -> Iterator[Batcher]:
    made = Batcher(max_batch=8, max_queue=20)
    made.start()
    yield made
    operation.reopen()
    assert made.close(PATIENCE)
