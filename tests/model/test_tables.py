"""Verdicts of the command line at the thresholds themselves."""

import pytest

from ddaebm.model.bulk import Scored
from ddaebm.model.tables import Totals, count, judge, select


def scored(*p_values: float | None) -> list[Scored]:
    return [Scored(i, f"{i}.png", p_value=p, error=None if p else "broken") for i, p in enumerate(p_values)]


def test_an_image_at_alpha_is_an_alarm() -> None:
    totals = Totals()
    rows = list(count(judge(scored(0.04, 0.05, 0.06, None), 0.05), totals))
    assert [row.is_ood for row in rows] == [True, True, False, None]
    assert (totals.images, totals.ood, totals.unreadable) == (4, 2, 1)
    assert str(totals) == "4 images: 2 out of distribution (66.7%), 1 unreadable"


@pytest.mark.parametrize(("fdr", "selected"), [(0.06, [True, True, False, False]), (0.05, [False] * 4)])
def test_an_image_at_the_threshold_of_the_fdr_is_selected(fdr: float, selected: list[bool]) -> None:
    """0.03·4 <= 2·0.06, but neither 0.02·4 <= 0.05 nor 0.03·4 <= 2·0.05."""
    rows = select(judge(scored(0.02, 0.03, 0.2, 0.9), 0.05), fdr)
    assert [row.selected for row in rows] == selected
