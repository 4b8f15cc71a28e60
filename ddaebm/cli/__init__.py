"""The command line: one file for each group of commands.

A command imports the service, the training code or a model only when it runs, so `ddaebm --help` is fast and serving
needs no torch.
"""

import os
import sys

import typer
from PIL import Image

from ddaebm.cli.figures import reproduce
from ddaebm.cli.gates import calibrate
from ddaebm.cli.lifecycle import classifier, evaluate, export, train
from ddaebm.cli.offline import sample, score
from ddaebm.cli.serving import key, serve
from ddaebm.model.errors import DdaebmError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=(
    "Adversarial energy-based diffusion: train, export and serve models that make images and score them."
))  # fmt: skip
for command in (serve, key, train, export, classifier, evaluate, calibrate, reproduce, sample, score):
    app.command()(command)


def main() -> None:
    """Entry point: a known error is one line on stderr and exit code 1."""
    Image.MAX_IMAGE_PIXELS = None  # of this process: --max-pixels is the limit
    try:
        app(prog_name="ddaebm")
    except BrokenPipeError:  # the reader of our output has closed it: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:  # torch, where only serving is installed
        if not error.name or error.name.partition(".")[0] == "ddaebm":
            raise
        install = "pip install -c constraints.txt '.[cpu,train]'"
        print(f"ddaebm: this needs {error.name}, which is not installed here; {install} has all of it", file=sys.stderr)
        raise SystemExit(1) from None
    except (DdaebmError, OSError) as error:
        print(f"ddaebm: {error}", file=sys.stderr)
        raise SystemExit(1) from None
