"""Decoder processes: the same pixels as in the service, and an end to whatever a decoder does."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest

from ddaebm.model.errors import ImageFormatError, ImageTooLargeError
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.decode import decode
from ddaebm.service.decoding import processes, slot
from ddaebm.service.decoding.processes import Decoders, DecodersFullError
from ddaebm.service.decoding.slot import DecoderUnavailableError, Job, Slot
from tests.service.conftest import PATIENCE, wait_until
from tests.stress.bodies import IMAGES

CONTRACT = Contract(8, 6, 3)
PIXELS = 16_000_000

Start = Callable[..., Decoders]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts decoders that are tended as the service does."""
    started: list[Decoders] = []
    ended = threading.Event()

    def tend() -> None:
        while not ended.wait(0.05):
            for decoders in started:
                decoders.tend()

    def make(count: int = 1, max_pixels: int = 10**9) -> Decoders:
        started.append(Decoders(count, max_pixels, lambda: deaths.append(1)))
        return started[-1]

    deaths.clear()
    thread = threading.Thread(target=tend)
    thread.start()
    yield make
    ended.set()
    thread.join(PATIENCE)
    for decoders in started:
        assert decoders.close(PATIENCE)
        assert not children(decoders)


deaths: list[int] = []


def job(content: object = None, pixels: int = 108, contract: Contract = CONTRACT, most: int = PIXELS) -> Job:
    return Job(IMAGES[0] if content is None else content, contract, most, pixels)  # type: ignore[arg-type]


def run(decoders: Decoders, *jobs: Job) -> list[object]:
    """Pixels of each, or its error."""
    decoders.submit(jobs)
    return [each.result.exception(PATIENCE) or each.result.result() for each in jobs]


def children(decoders: Decoders) -> list[int]:
    return [slot._process.pid for slot in decoders._slots if slot._process]


def test_the_pixels_are_those_of_decoding_in_the_service(start: Start) -> None:
    decoders = start(2)
    for image, found in zip(IMAGES, run(decoders, *map(job, IMAGES)), strict=True):
        if isinstance(found, ImageFormatError):
            with pytest.raises(ImageFormatError, match=re.escape(str(found))):
                decode(image, CONTRACT)
        else:
            expected = decode(image, CONTRACT)
            np.testing.assert_array_equal(found.pixels, expected.pixels)  # type: ignore[attr-defined]
            assert found.resized is expected.resized  # type: ignore[attr-defined]


def test_arrays_and_images_of_the_model_s_own_size(start: Start) -> None:
    pixels = np.arange(144, dtype=np.uint8).reshape(8, 6, 3)
    (found,) = run(start(), job(pixels))
    np.testing.assert_array_equal(found.pixels, pixels)  # type: ignore[attr-defined]
    assert not found.resized  # type: ignore[attr-defined]


def test_errors_keep_their_type_and_message(start: Start) -> None:
    small, words = run(start(), job(most=10), job(b"words"))
    assert isinstance(small, ImageTooLargeError)
    assert "over the limit of 10" in str(small)
    assert isinstance(words, ImageFormatError)
    assert "not a readable image" in str(words)


def test_no_process_runs_before_the_first_image(start: Start) -> None:
    decoders = start(2)
    assert children(decoders) == []
    run(decoders, job())
    assert len(children(decoders)) == 1


def test_a_process_that_does_not_end_is_killed_and_replaced(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot, "_SECONDS", 0.3)
    decoders = start()
    run(decoders, job())
    (stuck,) = children(decoders)
    os.kill(stuck, signal.SIGSTOP)
    began = time.monotonic()
    late, next_one = run(decoders, job(), job())
    assert isinstance(late, ImageFormatError)
    assert "takes over 0.3 s" in str(late)
    assert not isinstance(next_one, Exception)
    assert time.monotonic() - began < 5
    assert children(decoders) != [stuck]
    assert deaths == [1]


def test_a_process_that_does_not_take_a_large_file_is_killed_too(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot, "_SECONDS", 0.3)
    decoders = start()
    run(decoders, job())
    os.kill(children(decoders)[0], signal.SIGSTOP)
    (late,) = run(decoders, job(IMAGES[0] + bytes(8 * 2**20)))
    assert "takes over 0.3 s" in str(late)


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_process_that_gets_a_fifth_of_a_core_has_four_times_as_long(
    start: Start, monkeypatch: pytest.MonkeyPatch, goes_on: bool
) -> None:
    monkeypatch.setattr(slot, "_SECONDS", 0.5)
    monkeypatch.setattr(Slot, "_cpu_seconds", lambda self: time.monotonic() / 5)
    decoders = start()
    run(decoders, job())
    (stopped,) = children(decoders)
    os.kill(stopped, signal.SIGSTOP)
    if goes_on:
        threading.Timer(1.0, os.kill, (stopped, signal.SIGCONT)).start()
    began = time.monotonic()
    (found,) = run(decoders, job())
    assert isinstance(found, ImageFormatError) is not goes_on
    assert (1.0 if goes_on else 2.0) <= time.monotonic() - began < 5


def test_processor_time_of_a_decoder_is_told(start: Start) -> None:
    decoders = start()
    assert decoders._slots[0]._cpu_seconds() == 0, "none runs"
    run(decoders, job())
    assert 0 < decoders._slots[0]._cpu_seconds() < 60


def test_a_process_that_was_killed_loses_no_image(start: Start) -> None:
    decoders = start()
    run(decoders, job())
    os.kill(children(decoders)[0], signal.SIGKILL)
    found = run(decoders, job(), job())
    assert not any(isinstance(each, Exception) for each in found)
    assert deaths == [1]


def test_an_image_that_makes_the_decoder_die_is_refused_the_second_time(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exchange(slot: Slot, connection: object, job: Job) -> bytes:
        assert slot._process
        slot._process.kill()
        raise EOFError

    monkeypatch.setattr(Slot, "_exchange", exchange)
    (found,) = run(start(), job())
    assert isinstance(found, ImageFormatError)
    assert "makes the decoder fail" in str(found)
    assert deaths == [1, 1]


def test_memory_has_a_limit(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot, "MEMORY", 24 * 2**20)
    decoders = start()
    (found,) = run(decoders, job(np.zeros((3000, 4000, 3), np.uint8), pixels=12_000_000))
    assert isinstance(found, ImageTooLargeError | ImageFormatError)
    assert not isinstance(run(decoders, job())[0], Exception)


def test_pixels_that_wait_are_bounded(start: Start) -> None:
    decoders = start(max_pixels=1_000_000)
    run(decoders, job())
    os.kill(children(decoders)[0], signal.SIGSTOP)
    first = job(pixels=600_000)
    decoders.submit([first])  # is being decoded
    wait_until(lambda: decoders.waiting_pixels == 0)
    decoders.submit([job(pixels=5_000_000)])  # nothing waits, so it is accepted
    with pytest.raises(DecodersFullError) as refused:
        decoders.submit([job(pixels=1)])
    assert 1 <= refused.value.retry_after <= 60


def test_images_whose_client_left_are_not_counted_and_not_decoded(start: Start) -> None:
    decoders = start(max_pixels=1_000_000)
    run(decoders, job())
    os.kill(children(decoders)[0], signal.SIGSTOP)
    running = job()
    decoders.submit([running])
    wait_until(lambda: decoders.waiting_pixels == 0)
    for _ in range(50):
        left = job(pixels=1_000_000)
        decoders.submit([left])
        assert left.result.cancel()
        with pytest.raises(CancelledError):
            left.result.result(0)
    assert decoders.waiting_pixels == 0
    assert len(decoders._waiting) <= 1  # what has left is not kept either
    assert not isinstance(run(decoders, job())[0], Exception)


def test_small_images_pass_large_ones_that_wait(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    decoders = start()
    order: list[int] = []
    decode_job = Slot.decode

    def noted(slot: Slot, job: Job) -> object:
        order.append(job.pixels)
        return decode_job(slot, job)

    monkeypatch.setattr(Slot, "decode", noted)
    run(decoders, *(job(pixels=pixels) for pixels in (16_000_000, 15_000_000, 14_000_000, 100)))
    assert order[-3:] in ([100, 14_000_000, 15_000_000], [14_000_000, 15_000_000, 16_000_000])


def test_the_service_is_not_ready_when_no_process_can_start(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    decoders = start(1)
    monkeypatch.setattr(slot.sys, "executable", "/nowhere/python")
    (found,) = run(decoders, job())
    assert isinstance(found, DecoderUnavailableError)
    assert decoders.fault() == "no decoder process can be started"
    monkeypatch.undo()
    assert not isinstance(run(decoders, job())[0], Exception)
    assert decoders.fault() is None


def test_the_service_is_not_ready_when_all_are_stuck(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    decoders = start(1)
    assert decoders.fault() is None
    late = job()
    monkeypatch.setattr(decoders._slots[0], "_began", time.monotonic() - late.seconds - processes._STUCK_SECONDS - 1)
    monkeypatch.setattr(decoders._slots[0], "_job", late)
    assert decoders.fault() == "all decoder processes are stuck"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_replaced(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    decoders = start(1)
    decode_job = Slot.decode

    def die(slot: Slot, job: Job) -> object:
        raise SystemExit

    monkeypatch.setattr(Slot, "decode", die)
    dead = decoders._slots[0].thread
    decoders.submit([failed := job()])
    assert isinstance(failed.result.exception(PATIENCE), SystemExit)
    monkeypatch.setattr(Slot, "decode", decode_job)
    wait_until(lambda: decoders._slots[0].thread is not dead)
    assert not isinstance(run(decoders, job())[0], Exception)


def test_closing_takes_no_longer_than_killing() -> None:
    decoders = Decoders(1, 10**9)
    run(decoders, job())
    os.kill(children(decoders)[0], signal.SIGSTOP)
    running, waiting = job(), job()
    decoders.submit([running, waiting])
    began = time.monotonic()
    assert decoders.close(PATIENCE)
    assert time.monotonic() - began < 2
    assert isinstance(waiting.result.exception(PATIENCE), DecoderUnavailableError)
    assert isinstance(running.result.exception(PATIENCE), DecoderUnavailableError)
    assert children(decoders) == []
    with pytest.raises(DecoderUnavailableError):
        decoders.submit([job()])


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux alone")
def test_a_process_has_a_limit_on_its_memory_and_is_nice(start: Start) -> None:
    decoders = start()
    run(decoders, job())
    (pid,) = children(decoders)
    assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"Max address space +\d", limits)


def test_no_image_pays_for_loading_code() -> None:
    code = """
import io, sys, threading
from multiprocessing import Pipe
from PIL import Image
from ddaebm.model.images.contract import Contract
from ddaebm.model.images.decode import FORMATS
from ddaebm.service.decoding import worker

def ask():
    assert ours.recv_bytes() == worker.READY
    loaded = set(sys.modules)
    for name in FORMATS:
        file = io.BytesIO()
        Image.new("RGB", (9, 7)).save(file, name)
        ours.send_bytes(worker.ask(Contract(8, 6, 1), 100, None))
        ours.send_bytes(file.getvalue())
        assert ours.recv_bytes()[:1] == worker.RESIZED
    print(sorted(set(sys.modules) - loaded))
    ours.close()

ours, theirs = Pipe()
threading.Thread(target=ask).start()
worker.main(theirs.fileno(), 2**28)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
