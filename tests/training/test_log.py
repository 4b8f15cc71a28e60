"""What a run leaves to read: each step once, also after a kill."""

import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddaebm.model.images.encode import encode_png
from ddaebm.training.log import RunLog, seconds_logged

METRICS = {"seconds_per_step": 0.5, "energy_gen": 3.0, "energy_real": 1.0}


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_each_step_is_one_line_of_json_and_one_of_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path / "run", first_step=0, total=60) as log:
        log.write(10, METRICS)
        log.write(20, METRICS)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 10, **METRICS}, {"step": 20, **METRICS}]
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    out, err = capsys.readouterr()
    assert out == ""  # progress belongs to stderr
    assert "step 20/60  gap 2.00  0.500 s/step  0.3 min left" in err


def test_resuming_drops_what_was_logged_past_the_checkpoint_and_a_cut_line(tmp_path: Path) -> None:
    with RunLog(tmp_path, first_step=0, total=60) as log:
        for step in (10, 20, 30):
            log.write(step, METRICS)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "energy')
    with RunLog(tmp_path, first_step=20, total=60) as log:
        log.write(30, METRICS)
    assert steps(tmp_path) == [10, 20, 30]


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with RunLog(tmp_path, first_step=0, total=60) as log:
        log.write(10, METRICS)
        assert steps(tmp_path) == [10]


def test_samples_are_named_by_step(tmp_path: Path) -> None:
    grid = encode_png(np.zeros((8, 8, 1), np.uint8))
    with RunLog(tmp_path, first_step=0, total=60) as log:
        log.samples(50, ".png", grid)
        log.samples(60, ".npy", b"points")
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-0000050.png", "step-0000060.npy"]
    assert (tmp_path / "samples" / "step-0000050.png").read_bytes() == grid
    assert (tmp_path / "samples" / "step-0000060.npy").read_bytes() == b"points"
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Images("samples")] == [50]


def test_seconds_of_a_run_are_those_of_its_steps(tmp_path: Path) -> None:
    with RunLog(tmp_path, first_step=0, total=60) as log:
        log.write(10, {**METRICS, "seconds_per_step": 2.0})
        log.write(30, {**METRICS, "seconds_per_step": 0.5})
    assert seconds_logged(tmp_path) == 10 * 2.0 + 20 * 0.5


def test_other_processes_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path / "run", first_step=0, total=60, enabled=False) as log:
        log.write(10, METRICS)
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")
