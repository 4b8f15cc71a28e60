"""The two forms of the score: how its ridge regressions are penalised, and the units of their residuals."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from ddaebm.model.ood.scoring import FORMS, fit_scorer
from tests.model.ood.test_scoring import Floats, with_energies


def test_cross_validated_ridge_is_that_of_leaving_each_row_out() -> None:
    """Against fits that leave one row out each."""
    rng = np.random.default_rng(15)
    reference = np.hstack([rng.standard_normal((20, 1)), rng.standard_normal((20, 15))])
    reference[:, 0] += 0.1 * reference[:, 1:].sum(1)
    scorer = fit_scorer(reference, levels=1, form="cross-validated ridge")
    standard = (reference - reference.mean(0)) / reference.std(0)
    x, y = standard[:, 1:], standard[:, 0]

    def left_out(penalty: float) -> Floats:
        found = []
        for i in range(20):
            kept = np.arange(20) != i
            ridge = Ridge(alpha=20 * penalty, fit_intercept=False).fit(x[kept], y[kept])
            found.append(y[i] - ridge.predict(x[i : i + 1])[0])
        return np.array(found)

    best = min(FORMS["cross-validated ridge"], key=lambda penalty: np.square(left_out(penalty)).mean())
    assert best > 0.01
    ridge = Ridge(alpha=20 * best, fit_intercept=False).fit(x, y)
    r = (y - ridge.predict(x)) / left_out(best).std()
    found = (reference - reference.mean(0)) @ scorer.surprise[0]
    np.testing.assert_allclose(found, np.sqrt(16 / 4) * r, rtol=1e-6)


def test_a_number_that_never_differs_has_a_finite_weight() -> None:
    reference = np.hstack([with_energies(300, seed=18), np.full((300, 1), np.log(0.01))])
    scorer = fit_scorer(reference, 2, (1 / 4,))
    other = reference[:1].copy()
    other[0, -1] += 0.04  # two of the least standard deviations
    added = scorer.whole(other) - scorer.whole(reference[:1])
    assert added[0] == pytest.approx(12 / 2 / 4 * 2**2)


def test_forms_differ_for_few_rows_and_hardly_for_many() -> None:
    for count, close in ((15, False), (3000, True)):
        reference, new = with_energies(count, seed=16), with_energies(200, seed=17)
        scores = [np.log(fit_scorer(reference, 2, (), form).whole(new)) for form in FORMS]
        assert (np.abs(scores[0] - scores[1]).max() < 0.01) == close
