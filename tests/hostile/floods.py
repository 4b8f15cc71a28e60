"""Requests that are right, or nearly, but large, from many connections at once."""

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from functools import partial

import numpy as np
from PIL import Image

from tests.hostile.corpus import FORM, JSON, NPY, SAMPLES, SCORER, SCORES, Case, form
from tests.hostile.files import HONEST, save
from tests.stress.conftest import count

FEW, MANY = count(2, 20), count(3, 40)  # connections
SIDE = count(1000, 4000)
FILES = count(32, 256)
TOO_MUCH = {200, 429}
FIELD = '; name="images"; filename="a.png"'


def noise(width: int, height: int, channels: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels)


def endless(progressive: bool) -> bytes:
    return save(noise(SIDE, SIDE, 3), "JPEG", quality=50, progressive=progressive)[:-2]


def scans(side: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = save(Image.new("RGB", (side, side)), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * 90 + b"\xff\xd9"


def animation(side: int) -> bytes:
    frames = [Image.new("RGBA", (side, side), (i, 5, 9, 100)) for i in range(4)]
    return save(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True, method=0)


def chunky(chunks: int) -> bytes:
    """A small PNG in many pieces."""
    data, chunk = save(noise(60, 60, 3), "PNG"), struct.pack(">I4sI", 0, b"prVt", zlib.crc32(b"prVt"))
    return data[:33] + chunk * chunks + data[33:]


def array(side: int) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((1, side, side, 3), np.uint8))
    return buffer.getvalue()


def files_of(image: bytes) -> bytes:
    return form(*[(FIELD, image)] * FILES)


def floods() -> Iterator[Case]:
    yield Case("flood of noise", TOO_MUCH, lambda: save(noise(SIDE, SIDE, 4), "PNG", compress_level=1), connections=FEW)
    for progressive in (False, True):
        yield Case(
            f"flood of JPEGs without end, {progressive}", TOO_MUCH, partial(endless, progressive), connections=FEW
        )
    yield Case("flood of scans", TOO_MUCH | {422, 504}, partial(scans, SIDE), connections=FEW)
    yield Case("flood of animations", TOO_MUCH, partial(animation, SIDE), connections=FEW)
    webp = partial(save, noise(SIDE, SIDE // 2, 4), "WEBP", lossless=True, method=0)
    yield Case("flood of lossless WebP", TOO_MUCH, webp, connections=FEW)
    for name, image, kind in (("small TIFFs", Image.new("L", (28, 28)), "TIFF"),
                              ("small noise", noise(62, 62, 3), "PNG"),
                              ("photographs", Image.new("RGB", (500, 499)), "PNG")):  # fmt: skip
        make = partial(files_of, save(image, kind))
        yield Case(f"flood of {name}", TOO_MUCH | {504}, make, SCORES, FORM, connections=FEW)
    yield Case("flood of pieces", TOO_MUCH | {504}, lambda: files_of(chunky(20_000))[: 62 * 2**20], SCORES, FORM,
               connections=FEW // 2)  # fmt: skip
    text = b'{"images":["' + b"A" * (count(8, 60) * 2**20) + b'"]}'
    yield Case("flood of base64", {422, 429}, lambda: text, SCORES, JSON, connections=FEW)
    packed = {"Content-Encoding": "gzip"}
    yield Case("flood of packed base64", {422, 429}, lambda: gzip.compress(text), SCORES, JSON, packed, MANY)
    padded = form(*[(FIELD, HONEST + bytes(2**18))] * (FILES * 7 // 8))
    yield Case("flood of packed forms", TOO_MUCH, lambda: gzip.compress(padded), SCORES, FORM, packed, MANY)
    members = gzip.compress(b"x") * count(10**5, 2 * 10**6)
    yield Case("flood of gzip members", {400, 429}, lambda: members, headers=packed, connections=FEW)
    yield Case("flood of arrays", TOO_MUCH, partial(array, SIDE), SCORES, NPY, connections=FEW)
    yield Case("flood of heatmaps", TOO_MUCH, lambda: files_of(HONEST), f"{SCORES}?heatmap=true", FORM, connections=FEW)
    nested = str([[[[7]] * 28] * 28] * FILES)
    head = f'{{"inputs":[{{"name":"images","datatype":"UINT8","shape":[{FILES},28,28,1],"data":'
    yield Case("flood of tensors", TOO_MUCH | {504}, f"{head}{nested}}}]}}".encode, SCORER, JSON, connections=FEW)
    yield Case("flood of samples", TOO_MUCH, f'{{"n":{count(64, 1024)}}}'.encode, SAMPLES, JSON, connections=FEW)
