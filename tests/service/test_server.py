"""uvicorn's signals: a drain is announced before it begins."""

import asyncio
import io
import resource
import signal
import struct
import warnings

import pytest
import uvicorn
from PIL import Image, TiffImagePlugin
from starlette.testclient import TestClient

from ddaebm.model.images.contract import Contract
from ddaebm.model.images.decode import decode
from ddaebm.service.server import Server, allow_open_files, configure_pillow
from tests.service.conftest import check_problem


def test_a_signal_makes_the_service_unready_and_the_server_stop(client: TestClient) -> None:
    server = Server(uvicorn.Config(client.app))
    assert client.get("/readyz").status_code == 200
    server.on_signal(signal.SIGTERM, None)
    check_problem(client.get("/readyz"), 503, "not-ready")
    assert server.should_exit
    assert not server.force_exit


def test_a_second_interrupt_ends_at_once(client: TestClient) -> None:
    server = Server(uvicorn.Config(client.app))
    for _ in range(2):
        server.on_signal(signal.SIGINT, None)
    assert server.force_exit


def test_signals_are_handled_while_serving_and_given_back_after(client: TestClient) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    server = Server(uvicorn.Config(client.app))

    async def serving() -> None:
        with server.capture_signals():
            assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == server.on_signal
            assert signal.getsignal(signal.SIGHUP) not in (signal.SIG_DFL, signal.SIG_IGN)

    asyncio.run(serving())
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "set_to"),
    [(1024, 4096, 2000, (2000, 4096)), (1024, 1500, 2000, (1500, 1500)), (4096, 4096, 2000, None),
     (1024, resource.RLIM_INFINITY, 2000, (2000, resource.RLIM_INFINITY)),
     (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 2000, None)],
)  # fmt: skip
def test_as_many_files_may_be_open_as_there_may_be_connections(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, wanted: int, set_to: tuple[int, int] | None
) -> None:
    calls, warnings = list[tuple[int, int]](), list[str]()
    monkeypatch.setattr("ddaebm.service.server.logger.warning", lambda text, *args: warnings.append(text % args))
    monkeypatch.setattr("resource.getrlimit", lambda which: (soft, hard))
    monkeypatch.setattr("resource.setrlimit", lambda which, limits: calls.append(limits))
    allow_open_files(wanted)
    assert calls == ([set_to] if set_to else [])
    assert ["raise the limit" in text for text in warnings] == ([True] if hard == 1500 else [])


@pytest.mark.parametrize("ignored", [False, True])
def test_images_with_odd_metadata_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch, ignored: bool) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # is put back at the end

    def odd(tag: int) -> bytes:
        """A JPEG of which one tag lies outside the file."""
        entry = struct.pack("<HHHII", 1, tag, 2, 1_000, 200)
        buffer = io.BytesIO()
        Image.new("L", (28, 28)).save(buffer, "jpeg", exif=b"Exif\0\0II*\0" + struct.pack("<I", 8) + entry + bytes(4))
        return buffer.getvalue()

    with warnings.catch_warnings(record=True):
        warnings.simplefilter("default")
        if ignored:
            configure_pillow()
        registry = vars(TiffImagePlugin).setdefault("__warningregistry__", {})
        registry.clear()
        for tag in range(270, 280):
            decode(odd(tag), Contract(28, 28, 1))
        kept = [key for key in registry if key != "version"]
    assert len(kept) == (0 if ignored else 10)
