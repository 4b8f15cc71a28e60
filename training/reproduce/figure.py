"""What the figures share: files of one form, stages that are not computed twice, a bundle's networks."""

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
from safetensors.torch import load
from torch import Tensor, nn

from ddaebm.model.bundle import Bundle
from ddaebm.model.errors import ConfigError, DataError
from ddaebm.model.files import read_arrays, write_file
from ddaebm.model.images.encode import make_grid
from ddaebm.model.nets.graphs import to_pixels
from ddaebm.model.nets.networks import EnergyNet, Generator
from ddaebm.model.noise import image_seeds
from ddaebm.model.progress import progress
from ddaebm.model.sampling import Noise, draw_noise, sample
from ddaebm.model.schedule import make_schedule
from ddaebm.training import checkpoint
from ddaebm.training.config import TrainConfig
from ddaebm.training.interrupt import Interrupt
from ddaebm.training.step import TrainState, make_state
from ddaebm.training.trainer import train

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
Net = TypeVar("Net", bound=nn.Module)
Measure: TypeAlias = Callable[[TrainState], Mapping[str, float]]


def encode_figure(figure: Figure, dpi: int = 120) -> bytes:
    """PNG of `figure`, without a date or version inside: the same for the same input, drawn without a display."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def encode_npz(arrays: Arrays) -> bytes:
    """The same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **dict(arrays))
    return buffer.getvalue()


def write_results(out: Path, figure: Figure, metrics: Mapping[str, Any], arrays: Arrays) -> None:
    """figure.png, arrays.npz and metrics.json, the last of which says that all are there."""
    write_file(out / "figure.png", encode_figure(figure))
    write_file(out / "arrays.npz", encode_npz(arrays))
    write_file(out / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())


def claim(out: Path, **settings: Any) -> None:
    """Make the folder `out` that of these settings; what earlier calls left there can then be gone on with.

    Raises:
        ConfigError: it was made with others.
    """
    path, text = out / "settings.json", json.dumps(settings, indent=2) + "\n"
    if path.exists() and path.read_text() != text:
        raise ConfigError(f"{out} was made with other settings ({path}); give another --out, or delete it")
    out.mkdir(parents=True, exist_ok=True)
    write_file(path, text.encode())


def stage(out: Path, name: str, make: Callable[[], Arrays]) -> Arrays:
    """Arrays of `make`, kept in `out`/stages: a claimed folder computes each stage once."""
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
) -> TrainState:
    """`training.trainer.train`, for a figure that has nothing to show of half a run.

    Raises:
        ConfigError: `run` is one with other settings.
        KeyboardInterrupt: it was asked to stop, and has left a checkpoint.
    """
    if checkpoint.list_checkpoints(run) and checkpoint.read_config(run) != config:
        raise ConfigError(f"{run} is a run with other settings; give another --out, or delete it")
    state = train(config, data, run, device, make, observe)
    if state.step < config.steps:
        raise KeyboardInterrupt
    return state


def keep(folder: Path, measure: Measure) -> Callable[[TrainState], None]:
    """What `train` is to do on the way: measure, once for each step, into `folder`."""

    def observe(state: TrainState) -> None:
        path = folder / "measured" / f"step-{state.step:07d}.npz"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_file(path, encode_npz({name: np.array(value) for name, value in measure(state).items()}))

    return observe


def curve(folder: Path, every: int, total: int) -> dict[str, list[float]]:
    """What was kept, by name, at each multiple of `every` and at the end; not where a run was stopped in between."""
    places = sorted({*range(every, total + 1, every), total})
    rows = [read_arrays((folder / "measured" / f"step-{step:07d}.npz").read_bytes()) for step in places]
    return {"train_steps": [*places], **{name: [float(row[name]) for row in rows] for name in rows[0]}}


def fit(
    path: Path, what: str, nets: nn.Module, optimizers: Sequence[torch.optim.Optimizer], steps: int,
    step: Callable[[int], None], every: int = 500,
) -> None:  # fmt: skip
    """Call `step(i)` for i up to `steps`; `nets` and `optimizers`, which it changes, are kept in `path`.

    Raises:
        KeyboardInterrupt: it was asked to stop, and has kept what there is.
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
    """What `make` makes, its random beginning that of `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().to(device)


def choose_device(device: str) -> torch.device:
    """ "auto" is CUDA where there is one.

    Raises:
        ConfigError: there is no such device.
    """
    if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(f"device {device!r} is not to be had here; give auto, cpu or cuda")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def require_data(data: str | None, what: str) -> str:
    """Raises DataError, which says what to give, where there is no `data`."""
    if not data:
        raise DataError(
            f"this figure needs --data PATH: {what} (a folder or archive of images, .npy, .npz or an IDX file)"
        )
    return data


def load_networks(bundle: Bundle, device: torch.device) -> tuple[Generator, EnergyNet]:
    """A bundle's networks on torch, from its weights."""
    generator, energy_net = Generator(bundle.config), EnergyNet(bundle.config)
    generator.load_state_dict(load(bundle.read("generator.safetensors")))
    energy_net.load_state_dict(load(bundle.read("energy_net.safetensors")))
    return generator.to(device).eval().requires_grad_(False), energy_net.to(device).eval().requires_grad_(False)


class Passed(NamedTuple):
    """One pass of the sampler for B samples, as it went: column k is transition k's."""

    x_tp1: Tensor  # (B, T, *data_shape), as is the next
    x0_hat: Tensor
    x_0: Tensor  # (B, *data_shape)


@torch.no_grad()
def watched_sample(bundle: Bundle, generator: Generator, noise: Noise) -> Passed:
    """The sampler's own loop, watched."""
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
    """The images that the service makes of `seed`, (count, H, W, C)."""
    device, made = next(generator.parameters()).device, []
    seeds = torch.from_numpy(image_seeds(seed, count)).to(device)
    with progress("sample", count) as tick:
        for block in torch.split(seeds, batch):
            x_0 = watched_sample(bundle, generator, draw_noise(bundle.config, block)).x_0
            made.append(to_pixels(x_0).cpu().numpy())
            tick(len(block))
    return np.concatenate(made)


def show_images(axes: Axes, images: NDArray[np.uint8], columns: int, title: str) -> None:
    """Images (N, H, W, C) as a grid without ticks."""
    axes.imshow(make_grid(images, columns, gap=1).squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
