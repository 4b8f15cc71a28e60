import json

import pytest

from tests.training.golden import FOLDER, RECIPES, losses


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_maths_has_not_changed(recipe: str) -> None:
    golden = json.loads((FOLDER / f"{recipe}.json").read_text())
    actual = losses(recipe)
    assert len(actual) == len(golden)
    for step, (terms, wanted) in enumerate(zip(actual, golden, strict=True)):
        assert terms == pytest.approx(wanted, rel=1e-6), f"step {step}"
