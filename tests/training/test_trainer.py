"""The loop: deterministic, resumable at any moment, and loud when it diverges."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddaebm.model.errors import CheckpointError, ConfigError, NonFiniteLossError
from ddaebm.model.nets.networks import Networks
from ddaebm.training.checkpoint import list_checkpoints, resume, save, write_config
from ddaebm.training.config import TrainConfig
from ddaebm.training.data import batch_at, load_data, split, to_tensor
from ddaebm.training.objective import DDAEBMLoss, Draws, Generated, Pair
from ddaebm.training.recipes import make_config
from ddaebm.training.step import TrainState, cosine, ema_update, make_state
from ddaebm.training.trainer import train

TINY = make_config("debug").override(
    {"steps": "6", "batch_size": "8", "checkpoint_every": "2", "log_every": "1", "sample_every": "6"}
)
DATA = split(load_data("shapes", TINY.network)).train


def run_tiny(run: Path, **settings: str) -> TrainState:
    return train(TINY.override(settings), DATA, run, device="cpu")


def newest_files(run: Path) -> dict[str, bytes]:
    folder = list_checkpoints(run)[-1]
    return {f"{folder.name}/{file.name}": file.read_bytes() for file in folder.iterdir()}


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds_per_step"} for line in lines]


def weights(state: TrainState) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in state.networks.parameters()])


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps without interruption. Copy it before changing it."""
    run = tmp_path_factory.mktemp("whole") / "run"
    run_tiny(run)
    return run


def test_same_seed_same_files_whatever_the_global_generators(whole_run: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002
    run_tiny(tmp_path)
    assert newest_files(tmp_path) == newest_files(whole_run)
    assert metrics(tmp_path) == metrics(whole_run)


@pytest.mark.parametrize(
    "setting",
    [{"seed": "1"}, {"gamma": "1"}, {"gradient_penalty": "conditional"}, {"entropy_weight": "1"},
     {"flip": "true"}, {"forward_weight": "0.5"}, {"denoise_weight": "0.1", "network.energy_denoises": "true"},
     {"value_penalty": "1"}, {"precision": "bf16"},
     {"likelihood_floor": "1e-2"}, {"noise_at_zero": "true"}, {"lr_energy": "1e-3"}, {"lr_generator": "1e-3"},
     {"lr_final": "1e-3"}, {"adam_betas": "0.5,0.9"}],
    ids=str,
)  # fmt: skip
def test_every_setting_changes_the_weights(tmp_path: Path, setting: dict[str, str]) -> None:
    base = weights(run_tiny(tmp_path / "base", steps="2"))
    changed = weights(run_tiny(tmp_path / "changed", steps="2", **setting))
    assert changed.isfinite().all()
    assert not torch.equal(base, changed)


def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(whole_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    shutil.rmtree(list_checkpoints(run)[-1])  # back to step 4
    partial = run / "checkpoints" / ".step-0000006.partial"  # as a kill while saving leaves it
    partial.mkdir()
    (partial / "state.json").write_text("{")
    run_tiny(run)
    assert newest_files(run) == newest_files(whole_run)
    assert metrics(run) == metrics(whole_run)
    assert not partial.exists()


def test_a_finished_run_is_left_as_it_is(whole_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    assert run_tiny(run).step == 6
    assert newest_files(run) == newest_files(whole_run)


TRAIN_SCRIPT = """
import sys
from pathlib import Path
from ddaebm.training.checkpoint import read_config
from ddaebm.training.data import load_data, split
from ddaebm.training.trainer import train

config = read_config(Path(sys.argv[1]))
train(config, split(load_data(config.data, config.network)).train, Path(sys.argv[1]), device="cpu")
"""


def test_a_run_killed_at_any_moment_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    config = TINY.override({"steps": "40", "checkpoint_every": "4", "log_every": "5", "sample_every": "40"})
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    write_config(killed, config)
    process = subprocess.Popen([sys.executable, "-c", TRAIN_SCRIPT, str(killed)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list_checkpoints(killed) and time.monotonic() < deadline:
        time.sleep(0.002)
    delay = random.uniform(0, 0.25)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it finished first: give it more steps"

    reached = int(list_checkpoints(killed)[-1].name.removeprefix("step-"))
    assert 0 < reached < 40
    train(config, DATA, killed, device="cpu")
    train(config, DATA, whole, device="cpu")
    assert newest_files(killed) == newest_files(whole), f"killed {delay:.3f} s after its first checkpoint"
    assert metrics(killed) == metrics(whole)
    assert [line["step"] for line in metrics(killed)] == sorted({*range(4, 41, 4), *range(5, 41, 5)})


def test_a_corrupt_newest_checkpoint_is_an_error_and_the_one_before_still_serves(
    whole_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    newest = list_checkpoints(run)[-1]
    with (newest / "generator.safetensors").open("r+b") as handle:
        handle.truncate(100)
    with pytest.raises(CheckpointError, match="delete it to resume from the one before"):
        run_tiny(run)
    shutil.rmtree(newest)
    run_tiny(run)
    assert newest_files(run) == newest_files(whole_run)


def test_a_diverged_run_stops_and_keeps_its_last_checkpoint(whole_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    with pytest.raises(NonFiniteLossError, match=r"the last checkpoint in .* is kept"):
        run_tiny(run, steps="20", lr_energy="1e30")
    assert newest_files(run) == newest_files(whole_run)
    assert all(np.isfinite(list(line.values())).all() for line in metrics(run))


@pytest.mark.parametrize("device", ["tpu", ""])
def test_a_device_that_cannot_be_had_is_refused(tmp_path: Path, device: str) -> None:
    with pytest.raises(ConfigError, match="is not available"):
        train(TINY, DATA, tmp_path / "run", device=device)
    assert not (tmp_path / "run").exists()


def test_ema_update_moves_by_one_minus_decay() -> None:
    average, current = nn.Linear(3, 2), nn.Linear(3, 2)
    expected = [0.9 * a + 0.1 * c for a, c in zip(average.parameters(), current.parameters(), strict=True)]
    before = [parameter.clone() for parameter in current.parameters()]
    ema_update(average, current, 0.9)
    torch.testing.assert_close(list(average.parameters()), expected)
    torch.testing.assert_close(list(current.parameters()), before)


def test_first_averages_forget_the_random_start(tmp_path: Path) -> None:
    start, state = make_state(TINY), run_tiny(tmp_path, steps="1")
    decay = 2 / 11
    for ema, name in ((state.generator_ema, "generator"), (state.energy_net_ema, "energy_net")):
        pairs = zip(start.networks[name].parameters(), state.networks[name].parameters(), strict=True)
        expected = [decay * a + (1 - decay) * b for a, b in pairs]
        torch.testing.assert_close(list(ema.parameters()), expected, check_stride=False)


@pytest.mark.parametrize(("step", "rate"), [(0, 1.0), (25, 0.1 + 0.9 * 0.85355339), (50, 0.55), (100, 0.1), (150, 0.1)])
def test_cosine_goes_from_start_to_final(step: int, rate: float) -> None:
    assert cosine(step, 100, 1.0, 0.1) == pytest.approx(rate)


def test_both_optimisers_follow_their_own_cosine(tmp_path: Path) -> None:
    state = run_tiny(tmp_path, steps="3", lr_generator="1e-3", lr_energy="1e-4", lr_final="0")
    assert state.optimizer_generator.param_groups[0]["lr"] == cosine(2, 3, 1e-3, 0)
    assert state.optimizer_energy.param_groups[0]["lr"] == cosine(2, 3, 1e-4, 0)


def test_with_flip_a_run_trains_on_the_mirrored_images_of_its_draws(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Watching(DDAEBMLoss):
        def generate(self, networks: Networks, pair: Pair, draws: Draws) -> Generated:
            batch = to_tensor(batch_at(DATA, len(seen), 8, self.config.seed))
            seen.append(draws.side)
            for image, original, side in zip(pair.x_clean, batch, draws.side, strict=True):
                assert torch.equal(image, original.flip(2) if side < 0.5 else original)
            return super().generate(networks, pair, draws)

    train(TINY.override({"flip": "true"}), DATA, tmp_path, device="cpu", make_loss=Watching)
    sides = torch.stack(seen)
    assert sides.shape == (6, 8)
    assert 0 < (sides < 0.5).sum() < 48


def test_the_encoder_alone_is_trained_first(tmp_path: Path) -> None:
    start, state = make_state(TINY), run_tiny(tmp_path / "two", encoder_steps="2", steps="2")
    for name, net in state.networks.items():
        unchanged = all(map(torch.equal, net.parameters(), start.networks[name].parameters()))
        assert unchanged == (name != "encoder"), name
    state = run_tiny(tmp_path / "three", encoder_steps="2", steps="3")
    for name, net in state.networks.items():
        assert not all(map(torch.equal, net.parameters(), start.networks[name].parameters())), name


def test_bf16_leaves_the_penalty_in_full_precision(tmp_path: Path) -> None:
    run_tiny(tmp_path / "fp32", steps="1")
    run_tiny(tmp_path / "bf16", steps="1", precision="bf16")
    (full,), (half,) = metrics(tmp_path / "fp32"), metrics(tmp_path / "bf16")
    for term in ("penalty", "energy_real"):
        assert half[term] == full[term]
    for term in ("energy_gen", "reverse_kl", "forward_kl"):
        assert half[term] != full[term]
        assert half[term] == pytest.approx(full[term], rel=0.02)


def test_a_network_in_channels_last_is_saved_and_resumed(tmp_path: Path) -> None:
    state = make_state(TINY)
    state.networks.to(memory_format=torch.channels_last)
    save(tmp_path, state, TINY)
    other = make_state(TINY.override({"seed": "1"}))
    resume(tmp_path, other, TINY)
    assert torch.equal(weights(other), weights(state))


def test_a_lazy_penalty_weighs_as_much_in_sum(tmp_path: Path) -> None:
    lazy = run_tiny(tmp_path / "lazy", penalty_every="2", gamma="0.5", steps="3")
    assert ["penalty" in line for line in metrics(tmp_path / "lazy")] == [True, False, True]
    assert weights(lazy).isfinite().all()
    once = run_tiny(tmp_path / "once", penalty_every="2", gamma="0.5", steps="1")
    eager = run_tiny(tmp_path / "eager", penalty_every="1", gamma="1.0", steps="1")
    assert torch.equal(weights(once), weights(eager))


@pytest.mark.parametrize("settings", [{}, {"network.num_steps": "1"}], ids=["toy", "one transition"])
def test_points_train_in_the_same_loop(tmp_path: Path, settings: dict[str, str]) -> None:
    config: TrainConfig = make_config("toy").override({"steps": "3", "log_every": "1", **settings})
    state = train(config, split(load_data(config.data, config.network)).train, tmp_path, device="cpu")
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3]
    assert weights(state).isfinite().all()
    samples = np.load(tmp_path / "samples" / "step-0000003.npy")
    assert samples.shape == (2_000, 2)
    assert np.isfinite(samples).all()


@pytest.mark.parametrize("name", ["generator", "energy_net", "encoder"])
def test_weights_that_an_update_has_made_infinite_are_not_saved(tmp_path: Path, name: str) -> None:
    """The metrics of the step are from before its update, and so are finite."""

    def make(config: TrainConfig, device: torch.device) -> TrainState:
        state = make_state(config, device)
        step = state.optimizer_generator.step

        def overflowing(*args: object) -> None:
            step()
            with torch.no_grad():
                next(state.networks[name].parameters()).view(-1)[-1] = torch.inf

        state.optimizer_generator.step = overflowing  # type: ignore[method-assign,assignment]
        return state

    with pytest.raises(NonFiniteLossError, match=f"step 1: {name} not finite"):
        train(TINY.override({"steps": "1"}), DATA, tmp_path, device="cpu", make=make)
    assert not list_checkpoints(tmp_path)


@pytest.mark.parametrize("lr", [1e-3, 4e-5])
@pytest.mark.parametrize(("setting", "name"), [("lr_energy", "energy_net"), ("lr_generator", "generator"),
                                              ("lr_generator", "encoder")])  # fmt: skip
def test_the_first_step_is_as_long_as_the_learning_rate(tmp_path: Path, setting: str, name: str, lr: float) -> None:
    """Adam's first step moves each weight by lr·g/|g|."""
    config = TINY.override({"steps": "1", setting: str(lr)})
    before = make_state(config).networks[name]
    after = train(config, DATA, tmp_path, device="cpu").networks[name]
    moved = torch.cat([(b - a).abs().flatten() for a, b in zip(before.parameters(), after.parameters(), strict=True)])
    assert moved.max().item() == pytest.approx(lr, rel=1e-2)
