"""Milliseconds of one train step, here and in another checkout, alternated in one run, and the most memory it took.

    taskset -c 0 python benchmarks/training.py toy-paper --against ../before
    taskset -c 0 python benchmarks/training.py fashion-mnist --set penalty_every=4 --against ../before

--against names a checkout of another commit; it runs under this Python with that checkout's packages.
`--set` goes to this checkout alone. Images are random: their values do not change the time.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def measure(recipe: str, assignments: list[str], steps: int, channels_last: bool) -> float:
    """ms a step: the median over groups of 20 of their means, since with a lazy penalty the steps differ."""
    import numpy as np
    import torch
    from accelerate import Accelerator

    from ddaebm.model.nets.diffusion import Diffusion
    from ddaebm.model.schedule import make_schedule
    from ddaebm.training.data import MADE, batch_at, load_data, to_tensor
    from ddaebm.training.recipes import make_config
    from ddaebm.training.step import draw, make_state, train_step

    torch.set_num_threads(1)
    config = make_config(recipe).override(dict(text.split("=", 1) for text in assignments))
    channels, *size = (*config.network.data_shape, 0, 0)[:3]
    if config.data in MADE:
        data = load_data(config.data, config.network)
    else:
        data = np.random.default_rng(0).integers(256, size=(1_000, *size, channels), dtype=np.uint8)
    accelerator, state = Accelerator(cpu=True), make_state(config)
    if channels_last:
        state.networks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in the stubs
    diffusion = Diffusion(make_schedule(config.network))
    times = []
    for step in range(steps + max(steps // 10, 2)):
        began = time.perf_counter()
        batch = to_tensor(batch_at(data, step, config.batch_size, config.seed))
        draws = draw(config, step, len(batch), accelerator.device)
        train_step(config, diffusion, state, batch, draws, accelerator)
        times.append(time.perf_counter() - began)
    groups = [statistics.mean(times[-steps:][i : i + 20]) for i in range(0, steps, 20)]
    return 1e3 * statistics.median(groups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--against-recipe", help="its name there, where it differs")
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    parser.add_argument("--channels-last", action="store_true", help="the layout of a GPU, here alone")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        ms = measure(args.recipe, args.assignments, args.steps, args.channels_last)
        print(ms, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return

    def run(root: Path, recipe: str, *settings: str) -> tuple[float, int]:
        options = [recipe, "--child", f"--steps={args.steps}", *settings]
        environment = {**os.environ, "PYTHONPATH": str(root.resolve()), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), *options]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        ms, kib = done.stdout.split()
        return float(ms), int(kib)

    settings = [f"--set={text}" for text in args.assignments] + ["--channels-last"] * args.channels_last
    here, there = [], []
    for _ in range(args.rounds):
        here.append(run(ROOT, args.recipe, *settings))
        if args.against:
            there.append(run(args.against, args.against_recipe or args.recipe))
    ms = statistics.median(ms for ms, _ in here)
    peak = max(kib for _, kib in here) / 2**20
    print(f"{args.recipe} {' '.join(args.assignments)}: {ms:.2f} ms a step, peak of resident memory {peak:.2f} GiB")
    if there:
        theirs = statistics.median(ms for ms, _ in there)
        print(f"{args.against}: {theirs:.2f} ms a step; {theirs / ms:.2f} times as long")


if __name__ == "__main__":
    main()
