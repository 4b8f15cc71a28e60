"""Tensors of the Open Inference Protocol v2 over REST: JSON, with or without the binary tensor data extension.

The protocol: https://github.com/kserve/open-inference-protocol; the extension:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md.
A binary request is JSON, whose length is in a header, followed by the bytes of its tensors.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from ddaebm.service.http.bodies import SMALL_BODY
from ddaebm.service.http.errors import Problem, from_validation
from ddaebm.service.http.uploads import without_bom

HEADER_LENGTH = "inference-header-content-length"
_MAX_JSON = 4 * 2**20  # numbers as JSON are slow to parse and large in memory; larger tensors must be binary
_MAX_TENSORS = 16  # inputs or outputs of one request
# A list of numbers, nested or not. In a JSON text, quotes are escaped, so this cannot match inside one.
_DATA = re.compile(rb'"data"\s*:\s*(\[[-0-9,\[\]\s]*\])')
_MAX_SECONDS = 1e9  # of parameters.timeout
_DTYPES: dict[str, np.dtype[Any]] = {
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("u1"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a model; the first dimension of `shape` is the batch, -1."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def metadata(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


class _Output(BaseModel):
    name: str
    parameters: dict[str, Any] | None = None


class _Input(_Output):
    datatype: str
    shape: list[int] = Field(min_length=1, max_length=8, fail_fast=True)
    data: list[Any] | None = None


class _Body(BaseModel):
    id: str | None = None
    parameters: dict[str, Any] | None = None
    inputs: list[_Input] = Field(max_length=_MAX_TENSORS, fail_fast=True)
    outputs: list[_Output] | None = Field(None, max_length=_MAX_TENSORS, fail_fast=True)


@dataclass(frozen=True)
class InferRequest:
    """A parsed inference request with one input tensor."""

    id: str | None
    tensor: NDArray[Any]
    outputs: Mapping[str, bool]  # name -> as bytes
    timeout: float | None  # seconds
    low: bool  # low priority


def parse_request(
    body: bytes, header_length: str | None, spec: TensorSpec, outputs: Sequence[TensorSpec], most: int
) -> InferRequest:
    """Parse a request to a model with the single input `spec`, of at most `most` rows.

    Raises:
        Problem: 400 malformed, 413 too many rows or too much JSON, 422 not the model's tensors.
    """
    cut = len(body)
    if header_length is not None:
        if not header_length.isdecimal() or len(header_length) > 12 or int(header_length) > len(body):
            raise Problem(400, "malformed-body", f"{HEADER_LENGTH} must be the length of the JSON, within the body")
        cut = int(header_length)
    if cut > _MAX_JSON:
        detail = f"over {_MAX_JSON} bytes of JSON; send the tensor as binary data, or fewer rows at once"
        raise Problem(413, "body-too-large", detail)
    head, numbers = _cut_data(without_bom(body[:cut]))
    try:
        asked = _Body.model_validate(json.loads(str(head, "utf-8")))
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        raise from_validation([{**item, "loc": ("body", *item["loc"])} for item in errors]) from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number of thousands of digits, or too deep
        raise Problem(400, "malformed-json", "the request body is not valid JSON") from error
    parameters = asked.parameters or {}
    if [item.name for item in asked.inputs] != [spec.name]:
        raise _wrong(f"this model takes one input, {spec.name}")
    tensor = _read(asked.inputs[0], numbers, body[cut:], spec, most)
    names = [output.name for output in outputs]
    binary = parameters.get("binary_data_output") is True
    wanted = {o.name: (o.parameters or {}).get("binary_data", binary) is True for o in asked.outputs or []}
    if unknown := [name for name in wanted if name not in names]:
        raise _wrong(f"no output {unknown[0][:100]!r}; there are {', '.join(names)}")
    timeout = parameters.get("timeout")
    if timeout is not None and not (type(timeout) is int and 0 <= timeout <= 1e6 * _MAX_SECONDS):
        raise _wrong(f"parameters.timeout must be a whole number of microseconds, at most {1e6 * _MAX_SECONDS:g}")
    priority = parameters.get("priority") or 0
    if type(priority) is not int or priority < 0:
        raise _wrong("parameters.priority must be a whole number: 0 or 1, or from 2 for work that may be passed")
    return InferRequest(
        asked.id, tensor, wanted or dict.fromkeys(names, binary), timeout / 1e6 if timeout else None, priority > 1
    )


def _cut_data(head: bytes) -> tuple[bytes, bytes | None]:
    """JSON without the numbers of its tensor, and their text.

    Raises:
        Problem: 413, over 64 KiB of JSON remain; 422, there are several such lists.
    """
    found = _DATA.findall(head)
    if len(found) > 1:
        raise _wrong("data occurs several times; a model takes one input")
    head = _DATA.sub(b'"data":null', head)
    if len(head) > SMALL_BODY:
        detail = f"over {SMALL_BODY} bytes of JSON besides numbers; send less"
        raise Problem(413, "body-too-large", detail)
    return head, found[0] if found else None


def _read(given: _Input, numbers: bytes | None, tail: bytes, spec: TensorSpec, most: int) -> NDArray[Any]:
    """The tensor in the shape of `spec`. A batch of single numbers may also be flat."""
    if given.datatype != spec.datatype:
        raise _wrong(f"{spec.name} is {spec.datatype}, not {given.datatype[:20]!r}")
    shape, inner = tuple(given.shape), spec.shape[1:]
    if shape[1:] != inner and not (inner == (1,) and len(shape) == 1):
        raise _wrong(f"{spec.name} has the shape {list(spec.shape)}, not {list(shape)}")
    if shape[0] < 1:
        raise _wrong(f"{spec.name} has no rows")
    if shape[0] > most:
        raise Problem(413, "too-many-images", f"{shape[0]} rows at once; this server takes {most}")
    dtype, count = _DTYPES[spec.datatype], shape[0] * math.prod(inner)
    size = (given.parameters or {}).get("binary_data_size")
    if size is not None:
        if given.data is not None or numbers is not None:
            raise _wrong(f"{spec.name} has both data and binary_data_size")
        if size != count * dtype.itemsize or len(tail) != size:
            detail = f"{spec.name} takes {count * dtype.itemsize} bytes; binary_data_size is {str(size)[:20]},"
            raise _wrong(f"{detail} and {len(tail)} came after the JSON")
        return np.frombuffer(tail, dtype).reshape(shape[0], *inner)
    if tail:
        raise _wrong(f"{len(tail)} bytes came after the JSON that no input asks for")
    if given.data is None and numbers is None:
        raise _wrong(f"{spec.name} has neither data nor binary_data_size")
    values = _numbers(numbers or b"", (shape[0], *inner))
    if values is None:
        raise _wrong(f"{spec.name}: data must be {count} whole numbers, flat or nested like its shape")
    bounds = np.iinfo(dtype)
    if values.min() < bounds.min or values.max() > bounds.max:
        raise _wrong(f"{spec.name}: data must fit {spec.datatype}")
    return values.astype(dtype).reshape(shape[0], *inner)


def _numbers(text: bytes, shape: tuple[int, ...]) -> NDArray[np.int64] | None:
    """The whole numbers of a JSON list, flat or nested as `shape`, or None if it is anything else.

    As Python objects they would take ten times the time and up to thirty times the memory of their text, and the event
    loop would wait for them.
    """
    frame = text.translate(None, b"0123456789- \t\r\n")
    nested = b""
    for size in reversed(shape):
        nested = b"[" + b",".join([nested] * size) + b"]"
    flat = b"[" + b"," * (math.prod(shape) - 1) + b"]"
    if frame not in (nested, flat):
        return None
    try:
        values = np.fromstring(text.translate(None, b"[]"), np.int64, sep=",")
    except (ValueError, DeprecationWarning):  # what is no number; where NumPy only warns, numbers are missing
        return None
    return values if len(values) == math.prod(shape) else None


def encode_response(
    model: str, version: str, request_id: str | None, outputs: Sequence[tuple[TensorSpec, NDArray[Any], bool]]
) -> tuple[bytes, dict[str, str]]:
    """(body, headers) of outputs (spec, array, whether binary)."""
    described, tail = [], []
    for spec, array, binary in outputs:
        entry: dict[str, Any] = {**spec.metadata(), "shape": list(array.shape)}
        if binary:
            tail.append(np.ascontiguousarray(array, _DTYPES[spec.datatype]).tobytes())
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            entry["data"] = array.ravel().tolist()
        described.append(entry)
    body: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": described}
    if request_id is not None:
        body["id"] = request_id
    head = json.dumps(body, allow_nan=False).encode("ascii")
    if not tail:
        return head, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return b"".join([head, *tail]), headers


def _wrong(detail: str) -> Problem:
    return Problem(422, "invalid-request", detail)
