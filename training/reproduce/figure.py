"""Helpers that the figures share: output files, cached stages, training and sampling."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from ddaebm.model.bundle import Bundle
from ddaebm.model.errors import ConfigError, DataError
from ddaebm.model.files import read_arrays, write_file
from ddaebm.model.images.encode import make_grid
from ddaebm.model.nets.graphs import to_pixels
from ddaebm.model.nets.networks import Generator
from ddaebm.model.noise import image_seeds
from ddaebm.model.progress import progress
from ddaebm.model.sampling import Noise, draw_noise, sample
from ddaebm.model.schedule import make_schedule
from ddaebm.training import checkpoint
from ddaebm.training.config import TrainConfig
from ddaebm.training.interrupt import Interrupt
from ddaebm.training.objective import DDAEBMLoss
from ddaebm.training.step import TrainState, make_state
from ddaebm.training.trainer import train

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
Net = TypeVar("Net", bound=nn.Module)
Measure: TypeAlias = Callable[[TrainState], Mapping[str, float]]


def encode_figure(figure: Figure, dpi: int = 120) -> bytes:
    """Encode `figure` as a PNG, without a display. Equal figures give equal bytes: it holds no date and no version."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def encode_npz(arrays: Arrays) -> bytes:
    """Encode arrays as a compressed .npz. Equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **dict(arrays))
    return buffer.getvalue()


def write_results(out: Path, figure: Figure, metrics: Mapping[str, Any], arrays: Arrays) -> None:
    """Write figure.png, arrays.npz and, last, metrics.json; if it exists, the figure is complete."""
    write_file(out / "figure.png", encode_figure(figure))
    write_file(out / "arrays.npz", encode_npz(arrays))
    write_file(out / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())


def claim(out: Path, **settings: Any) -> None:
    """Record the settings of the folder `out`, so that only a call with equal settings continues in it.

    Raises:
        ConfigError: The folder was made with other settings.
    """
    path, text = out / "settings.json", json.dumps(settings, indent=2) + "\n"
    if path.exists() and path.read_text() != text:
        raise ConfigError(f"{out} was made with other settings ({path}); give another --out, or delete it")
    out.mkdir(parents=True, exist_ok=True)
    write_file(path, text.encode())


def stage(out: Path, name: str, make: Callable[[], Arrays]) -> Arrays:
    """Call `make` and cache its arrays in `out`/stages; later calls read the cache."""
    path = out / "stages" / f"{name}.npz"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_file(path, encode_npz(make()))
    return read_arrays(path.read_bytes())


def train_to_the_end(
    config: TrainConfig,
    data: NDArray[Any],
    run: Path,
    device: str,
    make: Callable[..., TrainState] = make_state,
    observe: Callable[[TrainState], None] | None = None,
    make_loss: type[DDAEBMLoss] = DDAEBMLoss,
) -> TrainState:
    """`training.trainer.train`, but an unfinished run raises KeyboardInterrupt.

    Raises:
        ConfigError: `run` is a run with other settings.
        KeyboardInterrupt: A signal stopped training. A checkpoint is written, so the same call resumes.
    """
    if checkpoint.list_checkpoints(run) and checkpoint.read_config(run) != config:
        raise ConfigError(f"{run} is a run with other settings; give another --out, or delete it")
    state = train(config, data, run, device, make, observe, make_loss)
    if state.step < config.steps:
        raise KeyboardInterrupt
    return state


def keep(folder: Path, measure: Measure) -> Callable[[TrainState], None]:
    """An `observe` function for `train` that writes the measures of each step to `folder`, once per step."""

    def observe(state: TrainState) -> None:
        path = folder / "measured" / f"step-{state.step:07d}.npz"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_file(path, encode_npz({name: np.array(value) for name, value in measure(state).items()}))

    return observe


def curve(folder: Path, every: int, total: int) -> dict[str, list[float]]:
    """Read the measures that `keep` wrote at each multiple of `every` and at step `total`, as lists by name."""
    places = sorted({*range(every, total + 1, every), total})
    rows = [read_arrays((folder / "measured" / f"step-{step:07d}.npz").read_bytes()) for step in places]
    return {"train_steps": [*places], **{name: [float(row[name]) for row in rows] for name in rows[0]}}


def fit(
    path: Path, what: str, nets: nn.Module, optimizers: Sequence[torch.optim.Optimizer], steps: int,
    step: Callable[[int], None], every: int = 500,
) -> None:  # fmt: skip
    """Call `step(i)` for i in 0..steps-1, and resume from the checkpoint in `path` if there is one.

    Args:
        path: File for the state of `nets` and `optimizers`, which `step` updates.
        what: Title of the progress bar.
        every: Steps between checkpoints.

    Raises:
        KeyboardInterrupt: A signal stopped it. A checkpoint is written, so the same call resumes.
    """
    done = 0
    if path.exists():
        saved = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
        nets.load_state_dict(saved["nets"])
        for optimizer, moments in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(moments)
        done = saved["step"]
    with Interrupt() as interrupt, progress(what, steps) as tick:
        tick(done, found=True)
        for i in range(done, steps):
            step(i)
            tick(1)
            if i + 1 == steps or (i + 1) % every == 0 or interrupt:
                buffer = io.BytesIO()
                moments = [optimizer.state_dict() for optimizer in optimizers]
                torch.save({"nets": nets.state_dict(), "optimizers": moments, "step": i + 1}, buffer)
                write_file(path, buffer.getvalue())
            if interrupt:
                raise KeyboardInterrupt


def seeded(seed: int, make: Callable[[], Net], device: torch.device) -> Net:
    """Call `make` with torch's random generator seeded by `seed`, and move the network to `device`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().to(device)


def require_data(data: str | None, what: str) -> str:
    """Return `data`.

    Args:
        what: Description of the data, for the error message.

    Raises:
        DataError: `data` is missing.
    """
    if not data:
        raise DataError(
            f"this figure needs --data PATH: {what} (a folder or archive of images, .npy, .npz or an IDX file)"
        )
    return data


class Passed(NamedTuple):
    """Intermediate states of the sampler for B samples; index k of the second axis is transition k."""

    x_tp1: Tensor  # (B, T, *data_shape), as is the next
    x0_hat: Tensor
    x_0: Tensor  # (B, *data_shape)


@torch.no_grad()
def watched_sample(bundle: Bundle, generator: Generator, noise: Noise) -> Passed:
    """Run the sampler and record the input and output of each generator call."""
    states: list[Tensor] = []
    guesses: list[Tensor] = []

    def call(x_tp1: Tensor, z: Tensor, k: int) -> Tensor:
        x0_hat: Tensor = generator(x_tp1, z, torch.full((1,), k, device=x_tp1.device))
        states.insert(0, x_tp1)
        guesses.insert(0, x0_hat)
        return x0_hat

    x_0 = sample(call, make_schedule(bundle.config), noise)
    return Passed(torch.stack(states, 1), torch.stack(guesses, 1), x_0)


def draw_images(bundle: Bundle, generator: Generator, count: int, seed: int, batch: int = 100) -> NDArray[np.uint8]:
    """Sample the images that the service returns for `seed`, uint8 (count, H, W, C)."""
    device, made = next(generator.parameters()).device, []
    seeds = torch.from_numpy(image_seeds(seed, count)).to(device)
    with progress("sample", count) as tick:
        for block in torch.split(seeds, batch):
            x_0 = watched_sample(bundle, generator, draw_noise(bundle.config, block)).x_0
            made.append(to_pixels(x_0).cpu().numpy())
            tick(len(block))
    return np.concatenate(made)


def show_images(axes: Axes, images: NDArray[np.uint8], columns: int, title: str) -> None:
    """Draw images (N, H, W, C) as a grid without ticks."""
    axes.imshow(make_grid(images, columns, gap=1).squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
