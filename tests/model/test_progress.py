"""Progress lines when stderr is not a terminal."""

import io
import sys

import pytest

from ddaebm.model import progress


def test_lines_hold_the_count_and_the_rate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.progress("sample", 10_000) as tick:
        tick(4000, found=True)
        tick(500)
        clock[0] = 10.0
        tick(500)
        tick(500)
        clock[0] = 20.0
        tick(1500)
    lines = ["sample: 5,000 of 10,000 images, 100/s, 50 s left", "sample: 7,000 of 10,000 images, 150/s, 20 s left"]
    assert capsys.readouterr() == ("", "\n".join(lines) + "\n")


def test_without_a_total_there_is_none_in_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with progress.progress("score") as tick:
        tick(7)
    assert capsys.readouterr().err.startswith("score: 7 images, ")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.progress("sample", 20) as tick:
        tick(5, found=True)
        tick(15)
    assert "sample" in terminal.getvalue()
    assert "20/20" in terminal.getvalue()
