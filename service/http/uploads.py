"""Bodies of POST /v1/scores, in four formats -> entries (name, bytes or pixels)."""

import asyncio
import base64
import binascii
import io
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from ddaebm.model.errors import DataError, ImageFormatError
from ddaebm.model.images.formats import Entry, npy_images, npy_shape
from ddaebm.service.http.context import Deadline
from ddaebm.service.http.errors import Problem, from_validation
from ddaebm.service.http.media import FORM, JSON, NPY, media_type_of
from ddaebm.service.http.schemas import ScoreRequest
from ddaebm.service.settings import Settings

T = TypeVar("T")

_FIELD = "images"
_BINARY = {"type": "string", "format": "binary"}
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


async def decoding(pool: ThreadPoolExecutor, deadline: Deadline, function: Callable[[], T]) -> T:
    """The result of `function`, called on one of the few threads for uploads.

    Raises:
        Problem: 504, the deadline passed. A running call continues; `function` should check the deadline as well.
    """
    call = asyncio.get_running_loop().run_in_executor(pool, function)
    try:
        return await asyncio.wait_for(call, deadline.left())
    except TimeoutError as error:
        raise deadline.problem() from error


async def read_body(request: Request) -> bytes:
    """The whole body. `Request.body` would make and keep a second copy."""
    buffer = io.BytesIO()
    async for chunk in request.stream():
        buffer.write(chunk)
    return buffer.getvalue()


@dataclass(frozen=True)
class Upload:
    """A request whose body holds images, with all that is needed to read it."""

    request: Request
    settings: Settings
    pool: ThreadPoolExecutor
    deadline: Deadline
    stack: AsyncExitStack  # closes the files of a form


async def read_uploads(upload: Upload) -> Iterable[Entry]:
    """The images of the body, undecoded, at least one; an image that is not base64 is an entry's error.

    The iterable can be gone through once, while `upload.stack` is open.

    Raises:
        Problem: 415 another media type, 413 too many images or pixels, 400 malformed, 422 nothing to score, 504.
    """
    media_type = media_type_of(upload.request)
    read = _READERS.get("image/*" if media_type.startswith("image/") else media_type)
    if read is None:
        raise Problem(
            415, "unsupported-media-type", f"send {FORM} with files named {_FIELD}, {JSON}, one image/* body, or {NPY}"
        )
    return await read(upload)


async def _read_form(upload: Upload) -> Iterable[Entry]:
    limit = upload.settings.max_files
    try:
        form = await upload.stack.enter_async_context(upload.request.form(max_files=limit, max_fields=16))
    except HTTPException as error:  # Starlette distinguishes its reasons by text only
        if str(error.detail).startswith("Too many files"):
            raise _too_many(limit) from error
        raise
    except (UnicodeError, LookupError, ValueError) as error:  # an unknown charset
        raise Problem(400, "malformed-form", "the form cannot be decoded; leave its charset out") from error
    parts = form.multi_items()
    files = [part for name, part in parts if name == _FIELD and isinstance(part, UploadFile)]
    if len(files) < len(parts):
        raise Problem(422, "invalid-request", f"every part must be a file named {_FIELD} (curl -F {_FIELD}=@FILE)")
    if not files:
        raise Problem(422, "invalid-request", f"no file named {_FIELD} (curl -F {_FIELD}=@FILE)")
    return (Entry(_printable(part.filename), part.file.read()) for part in files)


def _printable(name: str | None) -> str:
    return (name or "").encode("utf-8", "replace").decode()  # some charsets decode to what UTF-8 cannot encode


async def _read_json(upload: Upload) -> Iterable[Entry]:
    bodies, limit = [await read_body(upload.request)], upload.settings.max_files

    def parse() -> list[str]:
        body = bodies.pop()  # freed at the end of this call
        # Base64 has no commas and a data: URL has one, so more commas mean too many images. Check this before parsing
        # creates millions of values.
        if body.count(b",") > 2 * limit + 16:
            raise _too_many(limit)
        try:
            sent = ScoreRequest.model_validate_json(body)
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False, include_context=False)
            raise from_validation([{**item, "loc": ("body", *item["loc"])} for item in errors]) from error
        if len(sent.images) > limit:
            raise _too_many(limit)
        return sent.images

    images = await decoding(upload.pool, upload.deadline, parse)
    return (_from_base64(str(i), text) for i, text in enumerate(images))


def _from_base64(name: str, text: str) -> Entry:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        unbroken = text.encode("ascii").translate(None, b" \t\r\n")  # some encoders insert line breaks
        return Entry(name, base64.b64decode(unbroken, validate=True))
    except (binascii.Error, ValueError):
        return Entry(name, ImageFormatError("not base64; send the bytes of an image file in standard base64"))


async def _read_image(upload: Upload) -> Iterable[Entry]:
    return [Entry("0", await read_body(upload.request))]


async def _read_npy(upload: Upload) -> Iterable[Entry]:
    body = io.BytesIO(await read_body(upload.request))
    return await decoding(upload.pool, upload.deadline, lambda: _parse_npy(body, upload.settings))


def _parse_npy(handle: io.BytesIO, settings: Settings) -> list[Entry]:
    try:
        count, height, width, _ = npy_shape(handle)  # from the header alone; allocates nothing
        if count > settings.max_files:
            raise _too_many(settings.max_files)
        if count * height * width > settings.max_request_pixels:
            detail = f"{count} images of {width}x{height} are over {settings.max_request_pixels} pixels; send fewer"
            raise Problem(413, "too-many-pixels", detail)
        handle.seek(0)
        entries = [Entry(str(i), pixels) for i, pixels in enumerate(npy_images(handle))]
    except DataError as error:
        detail = f"{error}; send a .npy of uint8 (n, h, w) or (n, h, w, 1 or 3)"
        raise Problem(422, "unreadable-array", detail) from error
    if handle.read(1):
        raise Problem(422, "unreadable-array", "the body is longer than its .npy header says")
    return entries


def _too_many(limit: int) -> Problem:
    return Problem(413, "too-many-images", f"more than {limit} images; send fewer at once")


_READERS: dict[str, Callable[[Upload], Awaitable[Iterable[Entry]]]] = {
    FORM: _read_form, JSON: _read_json, "image/*": _read_image, NPY: _read_npy,
}  # fmt: skip
