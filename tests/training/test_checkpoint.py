"""A run folder: complete checkpoints only, everything restored, damage named."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from ddaebm.model.errors import CheckpointError
from ddaebm.training.checkpoint import (
    KEEP,
    list_checkpoints,
    load,
    read_config,
    resume,
    save,
    write_config,
)
from ddaebm.training.recipes import make_config
from ddaebm.training.step import TrainState, make_state

CONFIG = make_config("debug")


def stepped_state(step: int = 7) -> TrainState:
    """A state whose every part, moments included, differs from a fresh one."""
    state = make_state(dataclasses.replace(CONFIG, seed=1))
    for parameter in state.networks.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    for optimizer in (state.optimizer_generator, state.optimizer_energy):
        optimizer.param_groups[0]["lr"] = 1e-3
        optimizer.step()
    state.step = step
    return state


def test_everything_that_changes_in_training_is_restored(tmp_path: Path) -> None:
    saved, fresh = stepped_state(), make_state(CONFIG)
    load(save(tmp_path, saved, CONFIG), fresh, CONFIG)
    assert fresh.step == 7
    for name in ("networks", "generator_ema", "energy_net_ema", "optimizer_generator", "optimizer_energy"):
        torch.testing.assert_close(
            getattr(fresh, name).state_dict(), getattr(saved, name).state_dict(), rtol=0, atol=0, msg=name
        )
    moments = fresh.optimizer_energy.state_dict()["state"]
    assert all(slot["exp_avg_sq"].any() for slot in moments.values())


def test_only_the_newest_checkpoints_are_kept_in_order(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        save(tmp_path, stepped_state(step), CONFIG)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-0000010", "step-0000100"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == KEEP


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    folder = save(tmp_path, make_state(CONFIG), CONFIG)
    before = (folder / "generator.safetensors").read_bytes()
    assert save(tmp_path, stepped_state(0), CONFIG) == folder
    assert (folder / "generator.safetensors").read_bytes() != before


def test_an_unfinished_checkpoint_is_not_listed_and_not_in_the_way(tmp_path: Path) -> None:
    partial = tmp_path / "checkpoints" / ".step-0000007.partial"
    partial.mkdir(parents=True)
    (partial / "junk").write_text("cut short")
    assert list_checkpoints(tmp_path) == []
    folder = save(tmp_path, stepped_state(7), CONFIG)
    assert list_checkpoints(tmp_path) == [folder]
    assert not (folder / "junk").exists()
    assert not partial.exists()


def test_resume_without_checkpoints_leaves_the_state(tmp_path: Path) -> None:
    state = make_state(CONFIG)
    resume(tmp_path, state, CONFIG)
    assert state.step == 0


def test_resume_takes_the_newest(tmp_path: Path) -> None:
    for step in (5, 10):
        save(tmp_path, stepped_state(step), CONFIG)
    state = make_state(CONFIG)
    resume(tmp_path, state, CONFIG)
    assert state.step == 10


FILES = ["generator", "energy_net", "encoder", "generator_ema", "energy_net_ema"]


@pytest.mark.parametrize("name", [*(f"{name}.safetensors" for name in FILES), "optimizers.pt", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "text"])
def test_a_damaged_checkpoint_is_named_with_a_way_out(tmp_path: Path, name: str, damage: str) -> None:
    file = save(tmp_path, make_state(CONFIG), CONFIG) / name
    contents = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "half": contents[: len(contents) // 2], "text": b"some words"}[damage])
    with pytest.raises(CheckpointError, match=r"step-0000000 cannot be read .* delete it"):
        resume(tmp_path, make_state(CONFIG), CONFIG)


@pytest.mark.parametrize("contents", ["[]", "3", "{}", '{"step": 1}'])
def test_a_state_file_that_is_none_is_a_checkpoint_error(tmp_path: Path, contents: str) -> None:
    (save(tmp_path, make_state(CONFIG), CONFIG) / "state.json").write_text(contents)
    with pytest.raises(CheckpointError):
        resume(tmp_path, make_state(CONFIG), CONFIG)


def test_another_network_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, make_state(CONFIG), CONFIG)
    other = CONFIG.override({"network.latent_dim": "9"})
    with pytest.raises(CheckpointError, match=r"not those of config\.json"):
        load(folder, make_state(other), other)


def test_a_checkpoint_from_before_a_field_existed_has_its_default(tmp_path: Path) -> None:
    file = save(tmp_path, make_state(CONFIG), CONFIG) / "state.json"
    saved = json.loads(file.read_text())
    del saved["network"]["attention"]
    file.write_text(json.dumps(saved))
    resume(tmp_path, make_state(CONFIG), CONFIG)


def test_config_round_trip(tmp_path: Path) -> None:
    config = CONFIG.override({"network.widths": "8,8", "gamma": "0.5"})
    write_config(tmp_path / "run", config)
    assert read_config(tmp_path / "run") == config


@pytest.mark.parametrize("contents", [None, "", "{", "[]", "{}", json.dumps({"network": {"colour": 1}})])
def test_a_folder_without_a_readable_config_is_no_run(tmp_path: Path, contents: str | None) -> None:
    if contents is not None:
        (tmp_path / "config.json").write_text(contents)
    with pytest.raises(CheckpointError, match=r"no readable config\.json"):
        read_config(tmp_path)


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for step in (9_999_999, 10_000_000, 2):
        (tmp_path / "checkpoints" / f"step-{step:07d}").mkdir(parents=True)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-0000002", "step-9999999", "step-10000000"]
