"""The command line: one file for each group of commands.

A command imports the service, the training code or a model only when it runs, so `ddaebm --help` is fast and serving
needs no torch.
"""

import re
import sys

import typer
from PIL import Image

from ddaebm.cli.figures import reproduce
from ddaebm.cli.gates import calibrate, fit
from ddaebm.cli.lifecycle import classifier, evaluate, export, train
from ddaebm.cli.offline import sample, score
from ddaebm.cli.serving import key, serve
from ddaebm.cli.streams import drop_output, failed_output, open_streams
from ddaebm.model.errors import DdaebmError
from ddaebm.model.text import printable

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=(
    "Adversarial energy-based diffusion: train, export and serve models that make images and score them."
))  # fmt: skip
for command in (serve, key, train, export, classifier, evaluate, fit, calibrate, reproduce, sample, score):
    app.command()(command)


def main() -> None:
    """Entry point: a known error is one line on stderr and exit code 1."""
    open_streams()
    Image.MAX_IMAGE_PIXELS = None  # of this process: --max-pixels is the limit
    try:
        _require_arguments(sys.argv[1:])
        try:
            app(prog_name="ddaebm")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has closed it: `| head`
        drop_output()
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:  # torch, where only serving is installed
        if not error.name or error.name.partition(".")[0] == "ddaebm":
            raise
        install = "pip install -c constraints.txt '.[cpu,train]'"
        print(f"ddaebm: this needs {error.name}, which is not installed here; {install} has all of it", file=sys.stderr)
        raise SystemExit(1) from None
    except (DdaebmError, OSError) as error:
        if failed_output(error):
            drop_output()
        print(f"ddaebm: {printable(str(error))}", file=sys.stderr)
        raise SystemExit(1) from None


def _require_arguments(arguments: list[str]) -> None:
    """Exit with code 2 if an argument is empty, as that of a shell variable without a value.

    As a path it would be the working directory.
    """
    if empty := [text for text in arguments if not text or re.fullmatch(r"--[a-z-]+=", text)]:
        after = f" after {empty[0]}" if empty[0] else ""
        print(f"ddaebm: an argument is empty{after}; is a shell variable not set?", file=sys.stderr)
        raise SystemExit(2)
