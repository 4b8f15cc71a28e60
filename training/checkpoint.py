"""Checkpoints of a run. They survive a kill at any moment, and the newest two are kept.

Layout of a run folder:
    config.json                  the `TrainConfig`
    run_images.npz               which images are trained on and held out; see `training.record`
    checkpoints/step-0000500/    always complete: it is written under another name, synced and renamed
    metrics.jsonl, samples/, tensorboard/
"""

import io
import json
import re
import shutil
from pathlib import Path
from pickle import PickleError
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes

from ddaebm.model.config import ModelConfig
from ddaebm.model.errors import CheckpointError
from ddaebm.model.files import write_file, write_folder
from ddaebm.training.config import TrainConfig

if TYPE_CHECKING:
    from ddaebm.training.step import TrainState

KEEP = 2
_NAME = re.compile(r"step-(\d{7,})$")
# Exceptions that broken JSON, safetensors and torch files raise.
_UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, IndexError, EOFError, RuntimeError, PickleError, SafetensorError,
)  # fmt: skip


def _modules(state: "TrainState") -> dict[str, torch.nn.Module]:
    return {
        **dict(state.networks.items()),
        "generator_ema": state.generator_ema,
        "energy_net_ema": state.energy_net_ema,
    }


def _optimizers(state: "TrainState") -> dict[str, torch.optim.Optimizer]:
    return {"generator": state.optimizer_generator, "energy": state.optimizer_energy}


def save(run: Path, state: "TrainState", config: TrainConfig) -> Path:
    """Write checkpoints/step-N, delete all but the newest `KEEP`, and return the new folder."""
    folder = run / "checkpoints" / f"step-{state.step:07d}"
    with write_folder(folder) as beside:
        for name, module in _modules(state).items():
            weights = {key: value.contiguous() for key, value in module.state_dict().items()}
            (beside / f"{name}.safetensors").write_bytes(safetensors_bytes(weights))
        moments = io.BytesIO()  # written by Python, whose error names the folder when the disk is full
        torch.save({name: o.state_dict() for name, o in _optimizers(state).items()}, moments)
        (beside / "optimizers.pt").write_bytes(moments.getbuffer())
        (beside / "state.json").write_text(json.dumps({"step": state.step, "network": config.network.to_dict()}))
    for old in list_checkpoints(run)[:-KEEP]:
        shutil.rmtree(old)
    return folder


def list_checkpoints(run: Path) -> list[Path]:
    """Folders of the complete checkpoints of `run`, oldest first."""
    folder = run / "checkpoints"
    names = [found for path in folder.iterdir() if (found := _NAME.match(path.name))] if folder.is_dir() else []
    return [folder / found.string for found in sorted(names, key=lambda found: int(found[1]))]


def load(folder: Path, state: "TrainState", config: TrainConfig) -> None:
    """Load a checkpoint folder into `state`.

    Raises:
        CheckpointError: The checkpoint cannot be read, or its networks differ from those of `config`.
    """
    try:
        saved = json.loads((folder / "state.json").read_text())
        if ModelConfig.from_dict(saved["network"]) != config.network:  # missing fields get their defaults
            raise CheckpointError(f"{folder}: its networks are not those of config.json")
        for name, module in _modules(state).items():
            module.load_state_dict(load_file(folder / f"{name}.safetensors"))
        moments = torch.load(folder / "optimizers.pt", weights_only=True)
        for name, optimizer in _optimizers(state).items():
            optimizer.load_state_dict(moments[name])
        state.step = saved["step"]
    except _UNREADABLE as error:
        raise CheckpointError(f"{folder} cannot be read ({error}); delete it to resume from the one before") from error


def resume(run: Path, state: "TrainState", config: TrainConfig) -> None:
    """Load the newest checkpoint of `run` into `state`, if there is one.

    Raises:
        CheckpointError: As `load`.
    """
    if found := list_checkpoints(run):
        load(found[-1], state, config)


def write_config(run: Path, config: TrainConfig) -> None:
    """Write config.json of a run folder; make the folder if needed."""
    run.mkdir(parents=True, exist_ok=True)
    write_file(run / "config.json", (json.dumps(config.to_dict(), indent=2) + "\n").encode())


def read_config(run: Path) -> TrainConfig:
    """Read config.json of a run folder.

    Raises:
        CheckpointError: The file is missing or is no valid config.
    """
    try:
        return TrainConfig.from_dict(json.loads((run / "config.json").read_text()))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{run}: no readable config.json; is it a run of `ddaebm train`? ({error})") from error
