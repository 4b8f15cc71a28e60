"""A decoder process: receives image files, sends back their pixels. It may be killed at any time.

It imports what decoding needs and nothing else, and has a limit on its memory. `processes.Decoders` owns it.
"""

import ctypes
import io
import json
import os
import resource
import signal
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

from ddaebm.model.errors import ImageError, ImageFormatError, ImageTooLargeError
from ddaebm.model.images.contract import Contract, Masked
from ddaebm.model.images.decode import FORMATS, convert
from ddaebm.model.images.formats import Entry
from ddaebm.model.images.readers import open_entry

READY = b"ready"
# The first byte of an answer; the rest is the pixels or the message of the error.
PIXELS, RESIZED, BAD, LARGE = b"p", b"r", b"b", b"l"
ERRORS: dict[bytes, type[ImageError]] = {BAD: ImageFormatError, LARGE: ImageTooLargeError}

_NICENESS = 5  # inference and the event loop come first
_M_MMAP_THRESHOLD = -3  # of glibc's <malloc.h>
_SIGNAL_WHEN_PARENT_ENDS = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


def main(descriptor: int, memory: int) -> None:
    """Answer until the other end of the connection is closed.

    Args:
        descriptor: file descriptor of the connection.
        memory: bytes that decoding may allocate.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the service ends us
    _end_with_parent()
    os.nice(_NICENESS)
    _return_memory()
    _limit_memory(memory)
    Image.MAX_IMAGE_PIXELS = None  # each question has its own limit
    warnings.simplefilter("ignore")
    _load_formats()
    with Connection(descriptor) as connection:
        connection.send_bytes(READY)
        while True:
            try:
                question, content = connection.recv_bytes(), connection.recv_bytes()
            except EOFError:
                return
            connection.send_bytes(answer(question, content))


def ask(contract: Contract, max_pixels: int, shape: tuple[int, ...] | None) -> bytes:
    """A question. `shape` is that of raw pixels; None means that an image file follows."""
    return json.dumps([contract.shape, contract.resize_filter, contract.masked, max_pixels, shape]).encode()


def answer(question: bytes, content: bytes) -> bytes:
    form, resize_filter, masked, max_pixels, shape = json.loads(question)
    height, width, channels = form
    contract = (Masked if masked else Contract)(height, width, channels, resize_filter)
    try:
        body = content if shape is None else np.frombuffer(content, np.uint8).reshape(shape)
        decoded = convert(open_entry(Entry("", body), max_pixels), contract)
    except ImageTooLargeError as error:
        return LARGE + str(error).encode("utf-8", "replace")
    except ImageError as error:
        return BAD + str(error).encode("utf-8", "replace")
    except MemoryError:
        return LARGE + b"the image needs too much memory to decode; save it again, for example as PNG"
    return (RESIZED if decoded.resized else PIXELS) + decoded.pixels.tobytes()


def _load_formats() -> None:
    """Decode an image of each format, so that a user's image does not pay for loading Pillow's code from the disk."""
    image = Image.new("RGB", (8, 8))
    for name in FORMATS:
        file = io.BytesIO()
        image.save(file, name)
        convert(open_entry(Entry("", file.getvalue())), Contract(4, 4, 3))


def _end_with_parent() -> None:
    """Linux alone. Elsewhere a decoder whose parent was killed ends when it has finished its image."""
    control = getattr(ctypes.CDLL(None), "prctl", None)
    if control:
        control(_SIGNAL_WHEN_PARENT_ENDS, signal.SIGKILL)


def _return_memory() -> None:
    """Return large blocks to the system when they are freed. glibc would learn to keep them."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option:
        set_option(_M_MMAP_THRESHOLD, 2**20)


def _limit_memory(memory: int) -> None:
    """Limit the address space to what is mapped now and `memory` bytes more. Linux alone: others do not tell."""
    mapped = Path("/proc/self/statm")
    if mapped.exists():
        limit = int(mapped.read_text().split()[0]) * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
