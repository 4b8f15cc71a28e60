"""Forms as clients send them, as RFC 2046 and 7578 allow them, and as nobody should."""

import time

import pytest

from ddaebm.service.http.errors import Problem
from ddaebm.service.http.multipart import Part, parameters, read_form

TYPE = "multipart/form-data; boundary=B"
HEAD = b'Content-Disposition: form-data; name="images"; filename="a.png"\r\n'


def form(*parts: bytes) -> bytes:
    return b"".join(b"--B\r\n" + part + b"\r\n" for part in parts) + b"--B--\r\n"


def read(body: bytes, content_type: str = TYPE) -> list[Part]:
    return list(read_form(body, content_type))


def disposition(text: str) -> list[Part]:
    return read(form(b"Content-Disposition: " + text.encode() + b"\r\n\r\nx"))


def test_parts_come_in_order_byte_for_byte() -> None:
    contents = [b"", b"\r\n", b"-B--", b"\r\n--", b"x\r\n\r\n--C--\r\n", bytes(range(256)) * 100]
    assert read(form(*(HEAD + b"\r\n" + content for content in contents))) == [
        Part("images", "a.png", content) for content in contents
    ]


@pytest.mark.parametrize(
    "content_type",
    ['multipart/form-data; boundary="B"', "multipart/form-data;boundary=B",
     "multipart/form-data; charset=UTF-8; boundary=B", "Multipart/Form-Data; Boundary=B;",
     "multipart/form-data ; boundary = B"],
)  # fmt: skip
def test_the_boundary_may_be_written_in_several_ways(content_type: str) -> None:
    assert len(read(form(HEAD + b"\r\nx"), content_type)) == 1


@pytest.mark.parametrize(
    "body",
    [b"preamble\r\n" + form(HEAD + b"\r\nx"), b"\r\n" + form(HEAD + b"\r\nx"), form(HEAD + b"\r\nx") + b"epilogue",
     form(HEAD + b"\r\nx")[:-2], form(HEAD + b"\r\nx").replace(b"--B\r\n", b"--B \t\r\n")],
    ids=["preamble", "empty preamble", "epilogue", "no line end at the end", "padded boundary"],
)  # fmt: skip
def test_what_surrounds_the_parts_is_ignored(body: bytes) -> None:
    assert read(body) == [Part("images", "a.png", b"x")]


@pytest.mark.parametrize(
    ("text", "name"),
    [('form-data; name="images"; filename="a;b.png"', "a;b.png"), ("form-data; name=images; filename=a.png", "a.png"),
     ('form-data; name="images"; filename="a \\"b\\".png"', 'a "b".png'),
     ('form-data; name="images"; filename="C:\\dir\\a.png"', "C:\\dir\\a.png"),
     ("form-data; name=\"images\"; filename*=utf-8''na%C3%AFve%20a.png", "naïve a.png"),
     ("form-data; name=\"images\"; filename*=iso-8859-1'en'%E4.png", "ä.png"),
     ("form-data; filename*=utf-8''b; filename=\"a.png\"; name=images", "a.png"),
     ('FORM-DATA; NAME="images"; FILENAME="a.png"', "a.png"), ('form-data; name="images"; filename=""', ""),
     ('form-data; name="images"', None), ('form-data; name="images"; filename="кот.png";', "кот.png")],
)  # fmt: skip
def test_names(text: str, name: str | None) -> None:
    assert disposition(text) == [Part("images", name, b"x")]


def test_other_headers_are_ignored_and_latin_1_may_be_named() -> None:
    assert read(form(b"Content-Type: image/png\r\nX: 1\r\n" + HEAD + b"\r\nx")) == [Part("images", "a.png", b"x")]
    body = form(HEAD.replace(b"a.png", b"\xe4.png") + b"\r\nx")
    assert read(body, TYPE + "; charset=ISO-8859-1")[0].filename == "ä.png"
    assert read(body)[0].filename == "\ufffd.png"


BAD = {
    "no boundary": (form(HEAD + b"\r\nx"), "multipart/form-data"),
    "empty boundary": (form(HEAD + b"\r\nx"), "multipart/form-data; boundary="),
    "another boundary": (form(HEAD + b"\r\nx"), "multipart/form-data; boundary=C"),
    "no last boundary": (form(HEAD + b"\r\nx")[:-7], TYPE),
    "cut in a boundary": (form(HEAD + b"\r\nx")[:-4], TYPE),
    "a longer boundary": (b"--BB\r\n" + HEAD + b"\r\nx\r\n--BB--\r\n", TYPE),
    "no headers": (form(b"\r\nx"), TYPE),
    "no empty line": (form(HEAD + b"x"), TYPE),
    "no disposition": (form(b"Content-Type: image/png\r\n\r\nx"), TYPE),
    "an attachment": (form(b'Content-Disposition: attachment; name="images"\r\n\r\nx'), TYPE),
    "no name": (form(b"Content-Disposition: form-data\r\n\r\nx"), TYPE),
    "open quotes": (form(b'Content-Disposition: form-data; name="images\r\n\r\nx'), TYPE),
    "long headers": (form(b"X: " + b"y" * 9000 + b"\r\n" + HEAD + b"\r\nx"), TYPE),
    **{f"charset {name}": (form(HEAD + b"\r\nx"), f"{TYPE}; charset={name}")
       for name in ("punycode", "utf-7", "utf-16", "idna", "hex", "zlib", "undefined", "unicode_escape", "nonsense")},
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_form_is_400(name: str) -> None:
    with pytest.raises(Problem, match="the form cannot be read") as refused:
        read(*BAD[name])
    assert refused.value.status_code == 400


@pytest.mark.parametrize(
    "header", [b";" * 8000, b'x; filename="' + b";" * 8000 + b'"', b"x" + b"; a=b" * 1600, b"x; " + b"\\" * 8000,
               b'x; a="' + b'\\"' * 4000, b"x; a=" + b"b" * 8000, b"x" + b" ; " * 2500, b'x; a="' + b"\\" * 7999],
)  # fmt: skip
def test_parameters_take_linear_time(header: bytes) -> None:
    began = time.process_time()
    for _ in range(20):
        try:
            parameters(header)
        except ValueError:
            continue
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    "content", [b"\r\n--" * 4_000_000, b"\r\n" * 8_000_000, b"-" * 16_000_000, b"\r\n--A" * 3_000_000]
)
def test_a_body_takes_linear_time(content: bytes) -> None:
    began = time.process_time()
    assert len(read(form(HEAD + b"\r\n" + content))) == 1
    assert time.process_time() - began < 1
