"""Standard streams: closed ones are opened on /dev/null, and text that cannot be shown is escaped."""

import errno
import os
import sys

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def open_streams() -> None:
    """Open closed standard streams on /dev/null, and escape characters that stdout cannot encode.

    Otherwise the next file that is opened would get the number of the closed stream, and what is printed would end in
    that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed; the lowest free number is this one
            os.open(os.devnull, os.O_RDWR)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def failed_output(error: Exception) -> bool:
    """Return True if stdout could not be written, and name it in `error`. Other files are named where they fail."""
    if not isinstance(error, OSError) or error.errno not in _FULL or error.filename is not None:
        return False
    error.filename = "standard output"
    return True


def drop_output() -> None:
    """Send what stdout still has to /dev/null, so that Python does not fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
