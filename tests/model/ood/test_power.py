"""The table of what a gate would catch, and the faults that it is measured on."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ddaebm.model.ood.faults import FAULTS, Fault
from ddaebm.model.ood.power import MOST, SETS, Caught, auroc, painted, power, spread, table

Images = NDArray[np.uint8]
CASES = [(fault, severity) for fault in FAULTS for severity in fault.severities]


def pictures(shape: tuple[int, ...]) -> Images:
    rng = np.random.default_rng(0)
    ramp = np.linspace(60, 200, shape[2])[None, None, :, None]
    return (ramp + rng.normal(0, 6, shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("shape", [(7, 28, 28, 1), (7, 32, 48, 3)])
@pytest.mark.parametrize(("fault", "severity"), CASES, ids=[f"{f.name} {s:g}" for f, s in CASES])
def test_a_fault_changes_every_image_and_more_when_more_severe(
    fault: Fault, severity: float, shape: tuple[int, ...]
) -> None:
    images = pictures(shape)
    before = images.copy()
    faulty = fault.paint(images, severity, np.random.default_rng(1))
    assert (faulty.shape, faulty.dtype) == (shape, np.uint8)
    assert (faulty != images).reshape(len(images), -1).any(1).all()
    np.testing.assert_array_equal(images, before)
    mild, strong = (fault.paint(images, s, np.random.default_rng(1)).astype(float) for s in fault.severities)
    assert np.abs(strong - images).mean() > np.abs(mild - images).mean()


def test_a_row_is_the_same_whatever_else_is_painted() -> None:
    first, again = ([faulty for _, _, faulty in painted(pictures((4, 16, 16, 1)), seed)] for seed in (5, 5))
    assert len(first) == SETS == len(CASES)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    other_seed = [faulty for _, _, faulty in painted(pictures((4, 16, 16, 1)), 6)]
    assert (first[0] != other_seed[0]).any()


def test_auroc_is_the_share_of_pairs_in_order_ties_half() -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 6, 40).astype(float), rng.integers(2, 8, 30).astype(float)
    pairs = [(o > i) + 0.5 * (o == i) for i in inside for o in outside]
    assert auroc(inside, outside) == pytest.approx(np.mean(pairs))
    assert auroc(np.zeros(3), np.ones(4)) == 1


def test_the_table_has_the_worst_rows_first() -> None:
    images = pictures((20, 16, 16, 1))
    ordinary = images.astype(float).std((1, 2, 3))

    def score_of(faulty: Images) -> NDArray[np.float64]:
        return faulty.astype(float).std((1, 2, 3))

    rows = power(images, score_of, ordinary, threshold=float(ordinary.max()))
    assert len(rows) == SETS
    assert [row.caught for row in rows] == sorted(row.caught for row in rows)
    for row in rows:
        (faulty,) = [made for name, severity, made in painted(images) if (name, severity) == row[:2]]
        assert row.caught == (score_of(faulty) > ordinary.max()).mean()
        assert row.auroc == auroc(ordinary, score_of(faulty))
    assert rows[0].caught < rows[-1].caught


def test_at_most_two_hundred_images_are_painted_evenly_spread() -> None:
    assert spread(5).tolist() == [0, 1, 2, 3, 4]
    assert len(spread(10_000)) == MOST == 200
    assert (spread(10_000)[0], spread(10_000)[-1]) == (0, 9999)
    assert len(set(spread(201).tolist())) == 200


def test_the_table_as_text() -> None:
    text = table([Caught("hole", "0.1 diameter / side", 0.91234, 0.5)], 0.05)
    assert text.splitlines()[0].split() == ["fault", "severity", "AUROC", "caught", "at", "alpha", "=", "0.05"]
    assert text.splitlines()[1].split() == ["hole", "0.1", "diameter", "/", "side", "0.912", "50%"]
