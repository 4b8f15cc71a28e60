"""multipart/form-data (RFC 7578): the bytes of a whole body -> its parts.

Starlette's own parser works on the event loop, writes large files to the temporary folder, and takes quadratic time for
the headers of a part. Here the body is in memory anyway, so searching it is all that is left to do.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from ddaebm.service.http.errors import Problem

_MAX_HEADERS = 8192  # bytes of all headers of one part
_PARAMETER = re.compile(
    rb";[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s;\"]*))[ \t]*", re.DOTALL
)
_CHARSETS = {"": "utf-8", "utf-8": "utf-8", "utf8": "utf-8", "iso-8859-1": "latin-1", "latin-1": "latin-1"}


class Part(NamedTuple):
    name: str  # of the field
    filename: str | None  # None: not a file
    content: bytes


def read_form(body: bytes, content_type: str) -> Iterator[Part]:
    """The parts of a form, one by one, in time linear in the length of the body.

    Raises:
        Problem: 400, the body is not such a form.
    """
    try:
        options = parameters(content_type.encode("latin-1"))
    except ValueError:
        options = {}
    mark = options.get(b"boundary", b"")
    if not mark:
        raise _malformed("its Content-Type names no boundary; leave that header to your HTTP library")
    charset = _CHARSETS.get(options.get(b"charset", b"").decode("latin-1").lower())
    if charset is None:
        raise _malformed("it must be in UTF-8 or ISO-8859-1; leave the charset out")
    return _parts(body, b"--" + mark, charset)


def _parts(body: bytes, mark: bytes, charset: str) -> Iterator[Part]:
    if not body:
        return
    # The first delimiter may follow a preamble, which is ignored (RFC 2046, section 5.1.1).
    at = 0 if body.startswith(mark) else body.find(b"\r\n" + mark) + 2
    if at < 2 and not body.startswith(mark):
        raise _malformed("its boundary is not in the body")
    at += len(mark)
    while not body.startswith(b"--", at):
        line = body.find(b"\r\n", at, at + 100)
        if line < 0 or body[at:line].strip(b" \t"):
            raise _malformed("a boundary is not at the end of its line")
        end = body.find(b"\r\n" + mark, line)
        if end < 0:
            raise _malformed("it is truncated: its last boundary is missing")
        head = body.find(b"\r\n\r\n", line, min(end, line + _MAX_HEADERS))
        if head < 0:
            raise _malformed(f"a part has no headers, or over {_MAX_HEADERS} bytes of them")
        name, filename = _disposition(body[line + 2 : head], charset)
        yield Part(name, filename, body[head + 4 : end])
        at = end + 2 + len(mark)


def _disposition(headers: bytes, charset: str) -> tuple[str, str | None]:
    """(name, filename) of a part."""
    for line in headers.split(b"\r\n"):
        key, colon, value = line.partition(b":")
        if not colon or not key or key.strip() != key:
            raise _malformed("a part has a malformed header")
        if key.lower() != b"content-disposition":
            continue
        try:
            found = parameters(value)
        except ValueError as error:
            raise _malformed("a Content-Disposition is malformed") from error
        if value.partition(b";")[0].strip().lower() == b"form-data" and b"name" in found:
            return found[b"name"].decode(charset, "replace"), _filename(found, charset)
    raise _malformed('a part has no Content-Disposition: form-data; name="…"')


def _filename(found: dict[bytes, bytes], charset: str) -> str | None:
    if b"filename" in found:
        return found[b"filename"].decode(charset, "replace")
    if b"filename*" not in found:
        return None
    encoding, _, text = found[b"filename*"].partition(b"'")  # RFC 8187: charset'language'percent-encoded
    charset = _CHARSETS.get(encoding.decode("latin-1").lower(), "utf-8")
    return unquote_to_bytes(text.partition(b"'")[2]).decode(charset, "replace")


def parameters(header: bytes) -> dict[bytes, bytes]:
    """The parameters of `value; name=text; name="text"`, in linear time. Names are in lower case.

    Raises:
        ValueError: it is not of this form.
    """
    header = header.rstrip(b"; \t")
    at = header.find(b";")
    found: dict[bytes, bytes] = {}
    while 0 <= at < len(header):
        match = _PARAMETER.match(header, at)
        if match is None:
            raise ValueError("not a list of parameters")
        # Browsers write a quote in a file name as %22, others as \"; a lone backslash stands for itself (section 4.2).
        found[match[1].lower()] = match[3] if match[2] is None else match[2].replace(b'\\"', b'"')
        at = match.end()
    return found


def _malformed(why: str) -> Problem:
    return Problem(400, "malformed-form", f"the form cannot be read: {why}")
