"""Images to be scored in every form that is taken, and what hypothesis makes of them by damaging their bytes."""

import base64
import io
import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from PIL import Image

BOUNDARY = "ddaebm"


class Body(NamedTuple):
    content: bytes
    content_type: str
    path: str = "/v1/scores"
    json_length: int | None = None  # of the Open Inference Protocol


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _images() -> list[bytes]:
    """Small files of each format that is read, in the variants that decoders have code of their own for."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels)
    rgb, grey, palette = rgba.convert("RGB"), rgba.convert("L"), rgba.convert("RGB").quantize(16)
    deep = Image.fromarray(np.arange(108, dtype=np.uint16).reshape(12, 9) * 600)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [grey, rgb]}
    return [
        *(save(image, "PNG") for image in (rgb, rgba, grey, palette, deep, grey.convert("1"), rgba.convert("LA"))),
        save(rgb, "PNG", exif=exif), save(rgb, "PNG", **frames),
        *(save(image, "JPEG") for image in (rgb, grey, rgb.convert("CMYK"))),
        save(rgb, "JPEG", progressive=True, exif=exif), save(rgb, "JPEG", subsampling=2, icc_profile=b"x" * 200),
        save(rgb, "WEBP"), save(rgba, "WEBP", lossless=True, exif=exif), save(rgb, "WEBP", **frames),
        *(save(image, "BMP") for image in (rgb, grey, palette, grey.convert("1"))),
        save(palette, "GIF"), save(rgb, "GIF", **frames),
        *(save(image, "TIFF") for image in (rgb, rgba, grey, palette, deep, rgb.convert("CMYK"), grey.convert("F"))),
        *(save(rgb, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
        save(grey.convert("1"), "TIFF", compression="group4"), save(rgb, "TIFF", **frames),
    ]  # fmt: skip


def _arrays() -> list[bytes]:
    arrays = [np.zeros(shape, np.uint8) for shape in ((2, 8, 6), (1, 20, 30, 3), (3, 5, 5, 1))]
    written = []
    for version in ((1, 0), (2, 0), (3, 0)):
        for array in [*arrays, np.zeros((2, 8, 6), np.float32), np.asfortranarray(arrays[0])]:
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, version=version)
            written.append(buffer.getvalue())
    return written


def as_raw(image: bytes) -> Body:
    return Body(image, "image/png")  # the format is found by its bytes


def as_json(image: bytes) -> Body:
    texts = [base64.b64encode(data).decode() for data in (image, IMAGES[0])]
    return Body(json.dumps({"images": [texts[0], "data:image/png;base64," + texts[1]]}).encode(), "application/json")


def as_form(image: bytes) -> Body:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n'.encode()
    parts = [head + b"Content-Type: image/png\r\n\r\n" + data + b"\r\n" for data in (image, IMAGES[0])]
    return Body(b"".join(parts) + f"--{BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={BOUNDARY}")


def _tensors() -> list[Body]:
    """The same two images of the stand-in's size as JSON, and as bytes behind JSON."""
    images = np.arange(96, dtype=np.uint8)
    entry = {"name": "images", "datatype": "UINT8", "shape": [2, 8, 6, 1]}
    plain = json.dumps({"inputs": [entry | {"data": images.tolist()}]}).encode()
    head = json.dumps({"inputs": [entry | {"parameters": {"binary_data_size": 96}}]}).encode()
    path = "/v2/models/stand-in-scorer/infer"
    return [
        Body(plain, "application/json", path),
        Body(head + images.tobytes(), "application/octet-stream", path, len(head)),
    ]


IMAGES = _images()
ARRAYS = [Body(data, "application/x-npy") for data in _arrays()]
TENSORS = _tensors()

# Bytes that sizes, offsets and counts are most often wrong by.
_TELLING = [b"\x00", b"\xff", b"\x7f", b"\x80", b"\x00" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f",
            b"\x80\x00\x00\x00", b"\x01\x00\x00\x00", b"\xff\xda", b"\xff\xd8", b"IDAT", b"\r\n\r\n",
            b"--" + BOUNDARY.encode(), b'"', b"}", b"999999999"]  # fmt: skip
_CHUNK = st.one_of(st.sampled_from(_TELLING), st.binary(min_size=1, max_size=8))
_PLACE = st.one_of(st.integers(0, 64), st.integers(0, 2**16))  # headers are at the start


def _overwrite(data: bytes, at: int, chunk: bytes) -> bytes:
    return data[:at] + chunk + data[at + len(chunk) :]


def _insert(data: bytes, at: int, chunk: bytes) -> bytes:
    return data[:at] + chunk + data[at:]


def _delete(data: bytes, at: int, chunk: bytes) -> bytes:
    return data[:at] + data[at + len(chunk) :]


def _cut(data: bytes, at: int, chunk: bytes) -> bytes:
    return data[:at]


def _repeat(data: bytes, at: int, chunk: bytes) -> bytes:
    return data[:at] + data[at : at + 32] * (1 + chunk[0] % 16) + data[at + 32 :]


def _swap_the_tail(data: bytes, at: int, chunk: bytes) -> bytes:
    return data[:at] + IMAGES[chunk[0] % len(IMAGES)][at:]


_EDIT = st.tuples(st.sampled_from([_overwrite] * 4 + [_insert, _delete, _cut, _repeat, _swap_the_tail]), _PLACE, _CHUNK)
_EDITS = st.lists(_EDIT, max_size=6)


def _apply(data: bytes, edits: list[tuple[Callable[[bytes, int, bytes], bytes], int, bytes]]) -> bytes:
    for edit, place, chunk in edits:
        data = edit(data, place % (len(data) + 1), chunk)
    return data


# Damaged inside a form that is whole, and the whole form damaged.
_damaged_image = st.builds(_apply, st.sampled_from(IMAGES), _EDITS)
_whole = st.one_of(
    st.builds(lambda wrap, image: wrap(image), st.sampled_from([as_raw, as_raw, as_json, as_form]), _damaged_image),
    st.sampled_from(ARRAYS + TENSORS),
)
damaged = st.builds(lambda body, edits: body._replace(content=_apply(body.content, edits)), _whole, _EDITS)
