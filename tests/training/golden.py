"""Loss terms of the first steps of a recipe, in float64: the maths must not change unknowingly.

python -m tests.training.golden     writes them anew
"""

import json
from pathlib import Path

import torch
from accelerate import Accelerator

from ddaebm.model.nets.diffusion import Diffusion
from ddaebm.model.schedule import make_schedule
from ddaebm.training.data import batch_at, load_data, split, to_tensor
from ddaebm.training.objective import Draws
from ddaebm.training.recipes import make_config
from ddaebm.training.step import draw, make_state, train_step

FOLDER = Path(__file__).parent / "golden"
# Recipe -> number of steps, and settings for a fast test. Five steps have two with a gradient penalty.
RECIPES: dict[str, tuple[int, dict[str, str]]] = {
    "debug": (20, {}), "toy": (20, {}), "toy-paper": (20, {}),
    "fashion-mnist": (5, {"data": "shapes", "batch_size": "4"}),  # of the shipped bundles
}  # fmt: skip


def losses(recipe: str) -> list[dict[str, float]]:
    steps, settings = RECIPES[recipe]
    config = make_config(recipe).override(settings)
    data = split(load_data(config.data, config.network)).train
    accelerator = Accelerator(cpu=True)
    state = make_state(config)
    for module in (state.networks, state.generator_ema, state.energy_net_ema):
        module.double()
    diffusion = Diffusion(make_schedule(config.network), dtype=torch.float64)
    terms = []
    for step in range(steps):
        x_clean = to_tensor(batch_at(data, step, config.batch_size, config.seed)).double()
        k, *noise = draw(config, step, config.batch_size, accelerator.device)
        draws = Draws(k, *(values.double() for values in noise))
        step_terms = train_step(config, diffusion, state, x_clean, draws, accelerator)
        terms.append({name: value.item() for name, value in step_terms.items()})
    return terms


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in RECIPES:
        (FOLDER / f"{name}.json").write_text(json.dumps(losses(name), indent=1) + "\n")
