"""Bodies of POST /v1/scores, in four formats -> entries (name, bytes or pixels)."""

import asyncio
import base64
import binascii
import io
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError

from ddaebm.model.errors import DataError, ImageFormatError
from ddaebm.model.images.formats import Entry, npy_images, npy_shape
from ddaebm.service.http.context import RequestContext
from ddaebm.service.http.errors import Problem, from_validation
from ddaebm.service.http.media import FORM, JSON, NPY, media_type_of
from ddaebm.service.http.multipart import read_form
from ddaebm.service.http.schemas import ScoreRequest
from ddaebm.service.settings import Settings

T = TypeVar("T")

_FIELD = "images"
_BINARY = {"type": "string", "format": "binary"}
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}  # of zlib
_PIECE = 2**20  # bytes of base64, a multiple of 4
_LARGE = 2**19  # bytes; smaller bodies take under 0.1 s, whatever they hold
_BOM = b"\xef\xbb\xbf"  # some editors begin UTF-8 with it
REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        FORM: {
            "schema": {
                "type": "object",
                "required": [_FIELD],
                "properties": {_FIELD: {"type": "array", "items": _BINARY}},
            }
        },
        JSON: {"schema": ScoreRequest.model_json_schema()},
        "image/*": {"schema": _BINARY},
        NPY: {"schema": _BINARY},
    },
}


@dataclass
class Body:
    """The bytes of a request, inflated, and what is needed to read them."""

    content: bytes
    content_type: str
    settings: Settings
    channels: int  # of the model that will score them

    def take(self) -> bytes:
        """The bytes, which the body no longer holds: parsing may need as many again."""
        content, self.content = self.content, b""
        return content


class Parsers:
    """The threads on which uploads are parsed. Small ones never wait for large ones.

    Args:
        threads: for bodies up to 512 KiB; one more is for larger ones, which take seconds and much memory.
    """

    def __init__(self, threads: int) -> None:
        self.small = ThreadPoolExecutor(threads, "parse")
        self.large = ThreadPoolExecutor(1, "parse-large")

    def of(self, context: RequestContext) -> ThreadPoolExecutor:
        return self.small if context.body.received <= _LARGE else self.large

    def close(self) -> None:
        for pool in (self.small, self.large):
            pool.shutdown(wait=False, cancel_futures=True)


async def parsing(pool: ThreadPoolExecutor, context: RequestContext, function: Callable[[], T]) -> T:
    """The result of `function`, called on a thread for uploads.

    Raises:
        Problem: 504, the deadline passed. A running call continues, so it must be short.
    """
    deadline = context.deadline
    assert deadline is not None  # because the route has started it
    call = asyncio.get_running_loop().run_in_executor(pool, function)
    try:
        return await asyncio.wait_for(call, deadline.left())
    except TimeoutError as error:
        raise deadline.problem() from error


async def read_body(request: Request, context: RequestContext, parsers: Parsers, limit: int) -> bytes:
    """The whole body, inflated. `Request.body` would make and keep a second copy.

    Raises:
        Problem: As `inflate`; 429, what the body may inflate to does not fit beside the bodies of other requests.
    """
    buffer = io.BytesIO()
    async for chunk in request.stream():
        buffer.write(chunk)
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return buffer.getvalue()
    packed = buffer.getvalue()
    size = await parsing(parsers.large, context, lambda: inflated_size(packed, encoding, limit))
    context.body.add(size)
    return await parsing(parsers.large, context, lambda: zlib.decompress(packed, _WINDOWS[encoding], size))


def inflated_size(body: bytes, encoding: str, limit: int) -> int:
    """Bytes that a body of one gzip member or zlib stream inflates to, without keeping them.

    Raises:
        Problem: 415 unknown encoding, 400 corrupt, 413 over `limit` bytes.
    """
    if encoding not in _WINDOWS:
        raise Problem(415, "unsupported-encoding", "Content-Encoding must be gzip, deflate or none")
    stream, size, rest = zlib.decompressobj(_WINDOWS[encoding]), 0, body
    try:
        while piece := stream.decompress(rest, 2**20):
            size, rest = size + len(piece), stream.unconsumed_tail
            if size > limit:
                detail = f"the body is over {limit} bytes once it is inflated; send less at once"
                raise Problem(413, "body-too-large", detail)
    except zlib.error as error:
        raise Problem(400, "malformed-body", f"the body is not {encoding}") from error
    if not stream.eof or stream.unused_data:
        raise Problem(400, "malformed-body", f"the {encoding} of the body is truncated, or something follows it")
    return size


def without_bom(body: bytes) -> bytes:
    return body.removeprefix(_BOM)


def read_entries(body: Body) -> list[Entry]:
    """The images of a body, undecoded, at least one; an image that is not base64 is an entry's error.

    Raises:
        Problem: 415 another media type, 413 too many images or pixels, 400 malformed, 422 nothing to score.
    """
    media_type = media_type_of(body.content_type)
    read = _READERS.get("image/*" if media_type.startswith("image/") else media_type)
    if read is None:
        raise Problem(
            415, "unsupported-media-type", f"send {FORM} with files named {_FIELD}, {JSON}, one image/* body, or {NPY}"
        )
    return read(body)


def _read_form(body: Body) -> list[Entry]:
    entries: list[Entry] = []
    for name, filename, content in read_form(body.take(), body.content_type):
        if name != _FIELD or filename is None:
            raise Problem(422, "invalid-request", f"every part must be a file named {_FIELD} (curl -F {_FIELD}=@FILE)")
        if len(entries) == body.settings.max_files:
            raise _too_many(body.settings.max_files)
        entries.append(Entry(filename, content))
    if not entries:
        raise Problem(422, "invalid-request", f"no file named {_FIELD} (curl -F {_FIELD}=@FILE)")
    return entries


def _read_json(body: Body) -> list[Entry]:
    limit = body.settings.max_files
    # Base64 has no commas and a data: URL has one, so more commas mean too many images. Check this before parsing
    # creates millions of values.
    content = body.take()
    if content.count(b",") > 2 * limit + 16:
        raise _too_many(limit)
    if content.count(b"\\") > len(content) // 8 + 64:  # base64 needs one in 25 bytes, and each takes long to read
        raise Problem(422, "invalid-request", "images: base64 needs no escapes; send it as it is")
    try:
        images = ScoreRequest.model_validate_json(without_bom(content)).images
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        raise from_validation([{**item, "loc": ("body", *item["loc"])} for item in errors]) from error
    if len(images) > limit:
        raise _too_many(limit)
    del content
    images.reverse()  # each is freed when it has been decoded
    return [_from_base64(str(i), images.pop()) for i in range(len(images))]


def _from_base64(name: str, text: bytes) -> Entry:
    if text.startswith(b"data:"):
        text = text.partition(b",")[2]
    try:
        return Entry(name, b"".join(_decoded(text.translate(None, b" \t\r\n"))))  # some encoders insert line breaks
    except binascii.Error:
        return Entry(name, ImageFormatError("not base64; send the bytes of an image file in standard base64"))


def _decoded(text: bytes) -> Iterator[bytes]:
    """The bytes of base64, in pieces: the event loop waits for each call."""
    if 0 <= text.find(b"=") < len(text) - 2:
        raise binascii.Error("padding within the text")
    for start in range(0, len(text), _PIECE):
        yield base64.b64decode(text[start : start + _PIECE], validate=True)


def _read_image(body: Body) -> list[Entry]:
    return [Entry("0", body.take())]


def _read_npy(body: Body) -> list[Entry]:
    handle, settings = io.BytesIO(body.take()), body.settings
    try:
        count, height, width, _ = npy_shape(handle, body.channels)  # from the header alone; allocates nothing
        if count > settings.max_files:
            raise _too_many(settings.max_files)
        if count * height * width > settings.max_request_pixels:
            detail = f"{count} images of {width}x{height} are over {settings.max_request_pixels} pixels; send fewer"
            raise Problem(413, "too-many-pixels", detail)
        handle.seek(0)
        entries = [Entry(str(i), pixels) for i, pixels in enumerate(npy_images(handle, body.channels))]
    except DataError as error:
        detail = f"{error}; send a .npy of uint8 (n, h, w) or (n, h, w, 1 or 3)"
        raise Problem(422, "unreadable-array", detail) from error
    return entries


def _too_many(limit: int) -> Problem:
    return Problem(413, "too-many-images", f"more than {limit} images; send fewer at once")


_READERS: dict[str, Callable[[Body], list[Entry]]] = {
    FORM: _read_form, JSON: _read_json, "image/*": _read_image, NPY: _read_npy,
}  # fmt: skip
