"""The corpus: one row a case, with the statuses that are right."""

import base64
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from tests.hostile import files
from tests.hostile.files import CLOTHES, HONEST, save
from tests.stress.conftest import count

SCORES, SAMPLES = "/v1/scores", "/v1/samples"
SCORER, SAMPLER = "/v2/models/fashion-mnist-scorer/infer", "/v2/models/fashion-mnist-sampler/infer"
JSON, NPY, FORM = "application/json", "application/x-npy", "multipart/form-data; boundary=B"
MANY = count(200_000, 2_000_000)  # values of a large JSON body


class Case(NamedTuple):
    name: str
    wanted: set[int]
    make: Callable[[], bytes]
    path: str = SCORES
    content_type: str = "image/png"
    headers: dict[str, str] = {}  # noqa: RUF012  # never changed
    connections: int = 1
    words: str = ""  # in the answer


def tensor(data: str, name: str = "images", kind: str = "UINT8", shape: str = "[1,28,28,1]", more: str = "") -> bytes:
    return f'{{"inputs":[{{"name":"{name}","datatype":"{kind}","shape":{shape},"data":{data}}}]{more}}}'.encode()


def seeds(data: str = "[1]", shape: str = "[1,1]", more: str = "") -> bytes:
    return tensor(data, "seeds", "INT64", shape, more)


def repeated(text: str, number: int) -> str:
    return "[" + ",".join([text] * number) + "]"


def form(*parts: tuple[str, bytes], before: bytes = b"", after: bytes = b"") -> bytes:
    """A form of files, each with the parameters of its Content-Disposition."""
    heads = [(b"--B\r\nContent-Disposition: form-data" + head.encode() + b"\r\n\r\n", data) for head, data in parts]
    return before + b"".join(head + data + b"\r\n" for head, data in heads) + b"--B--\r\n" + after


def texts() -> Iterator[Case]:
    """JSON whose values take far more memory than its bytes, or never end."""
    one_long = json.dumps(["x" * 2**20, *["y"] * 600])
    packed = {"Content-Encoding": "gzip"}
    yield Case("one long text", {413, 422}, lambda: tensor(one_long), SCORER, JSON)
    yield Case("one long text, packed", {413, 422}, lambda: gzip.compress(tensor(one_long)), SCORER, JSON, packed)
    yield Case("bomb of JSON", {413}, lambda: gzip.compress(b" " * 80 * 2**20), SCORER, JSON, packed)
    for name, text in {"lists": "[]", "dicts": "{}", "texts": '"xy"', "floats": "1e999", "pairs": '{"a":[0]}'}.items():
        for number in (700, 200_000, 1_300_000):
            body = repeated(text, number).encode()[: 4 * 2**20 - 100].decode()
            yield Case(f"{number} {name}", {400, 413, 422}, partial(tensor, body), SCORER, JSON)
    yield Case("deep", {400, 413, 422}, lambda: tensor("[" * 100_000), SCORER, JSON)
    yield Case("deep, closed", {400, 413, 422}, lambda: tensor("[" * 2000 + "]" * 2000), SCORER, JSON)
    yield Case("long number", {400, 413, 422}, lambda: tensor("[" + "9" * 5000 + "]"), SCORER, JSON)
    full = repeated(repeated(repeated("[7]", 28), 28), 256)
    yield Case("256 nested images", {200}, partial(tensor, full, shape="[256,28,28,1]"), SCORER, JSON)
    for field in ("inputs", "outputs"):
        more = f',"{field}":{repeated("0", MANY)}'
        yield Case(f"many {field}", {413, 422}, partial(seeds, more=more), SAMPLER, JSON)
    yield Case("many sizes", {413, 422}, lambda: seeds(shape=repeated("null", MANY)), SAMPLER, JSON)
    keys = ",".join(f'"{i}":0' for i in range(MANY // 8))
    yield Case("many parameters", {413, 422}, lambda: seeds(more=f',"parameters":{{{keys}}}'), SAMPLER, JSON)
    yield Case("1,000 shapes", {422}, lambda: seeds(shape=repeated('"x"', 1000)), SAMPLER, JSON)
    yield Case("numbers for images", {413}, lambda: f'{{"images":{repeated("1", MANY)}}}'.encode(), SCORES, JSON)
    yield Case("500 numbers", {413, 422}, lambda: f'{{"images":{repeated("1", 500)}}}'.encode(), SCORES, JSON)
    yield Case("unknown keys", {413, 422}, lambda: f"{{{keys}}}".encode(), SCORES, JSON)
    yield Case("seeds of text", {422}, lambda: f'{{"seeds":{repeated("null", 10_000)}}}'.encode(), SAMPLES, JSON)
    small = ",".join(f'"{i}":0' for i in range(6000))
    yield Case("unknown fields", {422}, lambda: f"{{{small}}}".encode(), SAMPLES, JSON)
    size = count(4, 40) * 2**20
    emoji = '{"images":["' + "A" * size + '\U0001f600"]}'
    yield Case("an emoji", {422}, emoji.encode, SCORES, JSON)
    escapes = b'{"images":["' + b"\\u1234" * (size // 6) + b'"]}'
    yield Case("escapes", {422}, lambda: escapes, SCORES, JSON)


def numbers() -> Iterator[Case]:
    for digits in (401, 5000):
        huge = "9" * digits
        for key in ("timeout", "priority"):
            body = seeds(more=f',"parameters":{{"{key}":{huge}}}')
            wanted = {400, 422} if key == "timeout" else {200, 400, 422}
            yield Case(f"{key} of {digits} digits", wanted, partial(bytes, body), SAMPLER, JSON)
        yield Case(f"seed of {digits} digits", {400, 422}, partial(seeds, f"[{huge}]"), SAMPLER, JSON)
        yield Case(f"size of {digits} digits", {400, 413, 422}, partial(seeds, shape=f"[{huge},1]"), SAMPLER, JSON)
        yield Case(f"n of {digits} digits", {400, 422}, f'{{"n":{huge}}}'.encode, SAMPLES, JSON)
        header = {"X-Request-Timeout": huge}
        yield Case(f"deadline of {digits} digits", {200, 400}, lambda: b"{}", SAMPLES, JSON, header)
        length = {"Inference-Header-Content-Length": huge}
        yield Case(f"length of {digits} digits", {400}, seeds, SAMPLER, JSON, length)
        yield Case(f"alpha of {digits} digits", {422}, lambda: HONEST, f"{SCORES}?alpha=0.{huge}e{huge}")
    for value in ("1e999", "-1", "NaN", "true", "[1]", '"1"', "0.5"):
        body = seeds(more=f',"parameters":{{"timeout":{value}}}')
        yield Case(f"timeout {value}", {400, 422}, partial(bytes, body), SAMPLER, JSON)
        yield Case(f"fdr {value}", {422}, lambda: HONEST, f"{SCORES}?fdr={value.replace('0.5', '-0.5')}")


def images() -> Iterator[Case]:
    """Files that take a decoder long, or more memory than they have bytes."""
    for width, height, packing in (
        (16, 1_000_000, 1),
        (16, 1_000_000, 8),
        (16, 62_500, 1),
        (16, 16, 8),
        (4000, 4000, 1),
    ):
        make = partial(files.shared_tiles, width, height, packing)
        yield Case(f"shared tiles {width}x{height} {packing}", {413, 422}, make, content_type="image/tiff")
    yield Case("shared strips", {413, 422}, files.shared_strips, content_type="image/tiff")
    needed, others = {413, 422}, {200}  # tags that the pixels do not need cannot fail an image
    for tag, kind, wanted in ((258, 6, needed), (258, 3, needed), (339, 6, needed), (320, 3, needed), (273, 9, needed),
                              (700, 6, others), (270, 12, others), (65_000, 8, others)):  # fmt: skip
        size = count(4, 22)
        make = partial(files.tag_of, tag, kind, size)
        yield Case(f"huge tag {tag} of type {kind}", wanted, make, content_type="image/tiff")
    for kind in ("PNG", "PNG of 16 bits", "progressive JPEG", "WebP", "GIF", "BMP of runs", "TIFF"):
        make = partial(files.sixteen_megapixels, kind)
        yield Case(f"16 megapixels, {kind}", {200, 429}, make, connections=count(3, 20))
    for name in files.PNG_METADATA:
        yield Case(f"PNG with {name}", {200}, partial(files.with_metadata, name))
    jpeg = save(files.Image.fromarray(CLOTHES), "JPEG")
    yield Case("JPEG without its end", {200}, lambda: jpeg[:-2], content_type="image/jpeg")
    yield Case("half a JPEG", {422}, lambda: jpeg[: len(jpeg) * 2 // 3], content_type="image/jpeg")
    yield Case("12 bits", {200}, lambda: files.grey_tiff(12, 1), content_type="image/tiff")
    for bits, form_, word in (
        (32, 1, "32-bit"),
        (32, 2, "signed"),
        (16, 3, "floating"),
        (32, 3, "floating"),
        (64, 3, "floating"),
    ):
        make = partial(files.grey_tiff, bits, form_)
        yield Case(f"grey of {bits} bits, {word}", {422}, make, content_type="image/tiff", words=word)
        make = partial(files.colour_tiff, bits, form_)
        yield Case(f"colour of {bits} bits, {word}", {422}, make, content_type="image/tiff", words=word)


def arrays() -> Iterator[Case]:
    colour, grey = np.zeros((28, 28, 3), np.uint8), np.zeros((2, 28, 28), np.uint8)
    yield Case("colour array", {422}, lambda: files.npy(colour), content_type=NPY, words="or one colour image")
    yield Case("long header", {200}, lambda: files.npy(grey, pad=2000), content_type=NPY)
    yield Case("what follows", {422}, lambda: files.npy(grey, tail=b"x"), content_type=NPY, words="longer")
    for version in ((2, 0), (3, 0)):
        yield Case(f"version {version}", {200}, partial(files.npy, grey, version=version), content_type=NPY)
    for name, text in {"deep": "(" * 9000, "long": "1," * 4500, "number": "9" * 9000, "dict": "{" * 5000,
                       "words": "x" * 60_000,
                       "axes": f"{{'descr':'|u1','fortran_order':False,'shape':({'9' * 4000},)}}"}.items():  # fmt: skip
        yield Case(f"header, {name}", {413, 422}, partial(files.npy_head, text), content_type=NPY)
    large = np.zeros((4, 4000, 4000), np.uint8)
    yield Case("arrays of 16 megapixels", {200, 413, 429}, lambda: files.npy(large)[: 64 * 2**20], content_type=NPY)


def forms() -> Iterator[Case]:
    field, many = '; name="images"; filename="', count(32, 256)
    plain = form((f'{field}a.png"', HONEST))
    for charset in ("punycode", "utf-7", "idna", "zlib", "hex", "utf-16", "unicode_escape"):
        body = form(*[(f'{field}{"a-" * 2000}"', HONEST)] * many)
        yield Case(
            f"charset {charset}",
            {400},
            partial(bytes, body),
            content_type=f"{FORM}; charset={charset}",
            connections=4,
        )
    for name, head in {"semicolons": f'{field}{";" * 4000}"',
                       "bare semicolons": "; " * 3900 + field[2:] + '"',
                       "backslashes": field + "\\" * 3999 + 'x"',
                       "quotes": field + '\\"' * 1999 + '"'}.items():  # fmt: skip
        body = form(*[(head, HONEST)] * many)
        yield Case(f"names of {name}", {200, 400}, partial(bytes, body), content_type=FORM, connections=4)
    yield Case("long header", {400}, lambda: form((field + "x" * 10**6 + '"', HONEST)), content_type=FORM)
    yield Case("boundaries", {400, 413, 422}, lambda: b"--B\r\n" * MANY, content_type=FORM, connections=4)
    yield Case("dashes", {400, 413, 422}, lambda: b"\r\n--" * MANY, content_type=FORM, connections=4)
    yield Case("empty parts", {400, 413, 422}, lambda: form(*[('; name="images"', b"")] * 20_000), content_type=FORM)
    starred = form(("; name=images; filename*=utf-8''a%20b.png", HONEST))
    yield Case("filename*", {200}, lambda: starred, content_type=FORM, words='"a b.png"')
    around = form((f'{field}a.png"', HONEST), before=b"preamble\r\n", after=b"epilogue")
    yield Case("preamble and epilogue", {200}, lambda: around, content_type=FORM)
    for encoding, pack in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        header = {"Content-Encoding": encoding}
        yield Case(f"form by {encoding}", {200}, partial(pack, plain), content_type=FORM, headers=header)
        yield Case(f"bomb by {encoding}", {413}, partial(pack, bytes(80 * 2**20)), headers=header, connections=4)
    yield Case("samples by gzip", {415}, lambda: gzip.compress(b"{}"), SAMPLES, JSON, {"Content-Encoding": "gzip"})
    yield Case("brotli", {415}, lambda: HONEST, headers={"Content-Encoding": "br"})


def courtesies() -> Iterator[Case]:
    """Requests that look odd and are valid."""
    bom = b"\xef\xbb\xbf"
    image = json.dumps({"images": [base64.b64encode(HONEST).decode()]}).encode()
    yield Case("BOM, samples", {200}, lambda: bom + b"{}", SAMPLES, JSON)
    yield Case("BOM, scores", {200}, lambda: bom + image, SCORES, JSON)
    yield Case("BOM, tensors", {200}, lambda: bom + seeds(), SAMPLER, JSON)
    nothing = (
        b'{"inputs":[{"name":"seeds","datatype":"INT64","shape":[1,1],"data":[1],"parameters":null}],"parameters":null}'
    )
    yield Case("null parameters", {200}, lambda: nothing, SAMPLER, JSON)
    output = ',"outputs":[{"name":"images","parameters":null}]'
    yield Case("null parameters of an output", {200}, lambda: seeds(more=output), SAMPLER, JSON)
    yield Case("an impatient client", {504}, lambda: b'{"n":64}', SAMPLES, JSON, {"X-Request-Timeout": "0.0001"})


CORPUS = [*texts(), *numbers(), *images(), *arrays(), *forms(), *courtesies()]
