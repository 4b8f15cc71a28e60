import json
from pathlib import Path

import pytest

from ddaebm.training.reproduce import FIGURES
from tests.training.reproduce.golden import FOLDER, RUNS, flat, numbers


def test_every_figure_has_a_golden_run() -> None:
    assert list(RUNS) == list(FIGURES)


@pytest.mark.parametrize("figure", RUNS)
def test_the_numbers_of_a_tiny_run_have_not_changed(figure: str, tmp_path: Path, debug_bundle: Path) -> None:
    golden = flat(json.loads((FOLDER / f"{figure}.json").read_text()))
    assert flat(numbers(figure, tmp_path, debug_bundle)) == pytest.approx(golden, rel=1e-3, abs=2e-3)
    for name in ("figure.png", "metrics.json"):
        assert (tmp_path / figure / name).is_file()
