"""Bodies of POST /v1/scores, in four formats -> entries (name, bytes or pixels)."""

import asyncio
import base64
import binascii
import gzip
import io
import zlib
from collections.abc import Callable
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


@dataclass(frozen=True)
class Body:
    """The bytes of a request, inflated, and what is needed to read them."""

    content: bytes
    content_type: str
    settings: Settings
    channels: int  # of the model that will score them


async def parsing(pool: ThreadPoolExecutor, context: RequestContext, function: Callable[[], T]) -> T:
    """The result of `function`, called on one of the few threads for uploads.

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


async def read_body(request: Request, context: RequestContext, pool: ThreadPoolExecutor, limit: int) -> bytes:
    """The whole body, inflated. `Request.body` would make and keep a second copy.

    Raises:
        Problem: As `inflate`; 429, the inflated bytes do not fit beside those of other requests.
    """
    buffer = io.BytesIO()
    async for chunk in request.stream():
        buffer.write(chunk)
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return buffer.getvalue()
    content = await parsing(pool, context, lambda: inflate(buffer.getvalue(), encoding, limit))
    context.body.add(len(content))
    return content


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """Decompress a body.

    Raises:
        Problem: 415 unknown encoding, 400 corrupt, 413 over `limit` bytes.
    """
    try:
        if encoding in ("gzip", "x-gzip"):
            plain = gzip.GzipFile(fileobj=io.BytesIO(body)).read(limit + 1)
        elif encoding == "deflate":
            stream = zlib.decompressobj()
            plain = stream.decompress(body, limit + 1)
            if not stream.eof and len(plain) <= limit:
                raise EOFError("truncated")
        else:
            raise Problem(415, "unsupported-encoding", "Content-Encoding must be gzip, deflate or none")
    except (OSError, EOFError, zlib.error) as error:
        raise Problem(400, "malformed-body", f"the body is not {encoding}, or is truncated") from error
    if len(plain) > limit:
        raise Problem(413, "body-too-large", f"the body is over {limit} bytes once it is inflated; send less at once")
    return plain


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
    for name, filename, content in read_form(body.content, body.content_type):
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
    if body.content.count(b",") > 2 * limit + 16:
        raise _too_many(limit)
    try:
        sent = ScoreRequest.model_validate_json(without_bom(body.content))
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        raise from_validation([{**item, "loc": ("body", *item["loc"])} for item in errors]) from error
    if len(sent.images) > limit:
        raise _too_many(limit)
    return [_from_base64(str(i), text) for i, text in enumerate(sent.images)]


def _from_base64(name: str, text: bytes) -> Entry:
    if text.startswith(b"data:"):
        text = text.partition(b",")[2]
    try:
        unbroken = text.translate(None, b" \t\r\n")  # some encoders insert line breaks
        return Entry(name, base64.b64decode(unbroken, validate=True))
    except binascii.Error:
        return Entry(name, ImageFormatError("not base64; send the bytes of an image file in standard base64"))


def _read_image(body: Body) -> list[Entry]:
    return [Entry("0", body.content)]


def _read_npy(body: Body) -> list[Entry]:
    handle, settings = io.BytesIO(body.content), body.settings
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
