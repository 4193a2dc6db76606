"""Forms with files: those that clients write, and those that attackers do."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpt_serve.openai.errors import InvalidValueError, UnsupportedMediaTypeError
from mpt_serve.openai.multipart import FormPart, form_boundary, parse_form

FILE = b'\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


def form(*parts: bytes, end: bytes = b"--\r\n") -> bytes:
    return b"".join(b"--b" + part + b"\r\n" for part in parts) + b"--b" + end


def named(disposition: str) -> FormPart:
    (part,) = parse_form(form(f"\r\ncontent-disposition: {disposition}\r\n\r\nx".encode()), b"b")
    return part


@given(st.binary(max_size=200), st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=50))
def test_what_a_client_writes_is_read(content: bytes, value: str) -> None:
    request = httpx.Request("POST", "http://x", data={"purpose": value}, files={"file": ("in.jsonl", content)})
    parts = parse_form(request.read(), form_boundary(request.headers["content-type"]))
    assert parts == [FormPart("purpose", None, value.encode()), FormPart("file", "in.jsonl", content)]


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("..\\\\..\\\\boot.ini", "boot.ini"),
        ("/", "file"),
        ("", "file"),
        ("a\x00b\tc\u202ed", "abcd"),
        ('ä \\" b', 'ä " b'),
        ("x" * 999, "x" * 255),
    ],
)
def test_names_of_files_are_for_people_alone(sent: str, shown: str) -> None:
    assert named(f'form-data; name="file"; filename="{sent}"').filename == shown


def test_parameters() -> None:
    assert named('form-data; name="a;b=c"; x=y') == FormPart("a;b=c", None, b"x")
    assert named("Form-Data; NAME=plain; filename*=UTF-8''other") == FormPart("plain", None, b"x")


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "x" * 71,
        'multipart/form-data; boundary="a\\b\u00e9"',
        'multipart/form-data; boundary="a "',
        "multipart/mixed; boundary=x",
    ],
)
def test_what_is_no_form_is_refused(content_type: str) -> None:
    with pytest.raises(UnsupportedMediaTypeError):
        form_boundary(content_type)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "does not begin"),
        (b"preamble\r\n" + form(FILE), "does not begin"),
        (b"--other--", "does not begin"),
        (form(FILE)[:-4], "no end"),
        (form(FILE) + b"epilogue", "no end"),
        (form(*[FILE] * 17), "more than 16 parts"),
        (form(b"\r\nname: x"), "no headers"),
        (form(b" \r\nContent-Disposition: form-data; name=x\r\n\r\n"), "no headers"),
        (form(FILE.replace(b"\r\n\r\n", b"\r\nX: " + b"x" * 5000 + b"\r\n\r\n")), "too long"),
        (form(b"\r\nContent-Disposition: form-data; name=\xff\r\n\r\n"), "not UTF-8"),
        (form(b"\r\nContent-Type: text/plain\r\n\r\n"), "no name"),
        (form(b"\r\nContent-Disposition: attachment; name=x\r\n\r\n"), "no name"),
        (form(b"\r\nContent-Disposition: form-data; name=x; name=y\r\n\r\n"), "twice"),
        (
            form(FILE.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n")),
            "Content-Transfer-Encoding",
        ),
    ],
)
def test_broken_forms_are_refused(body: bytes, problem: str) -> None:
    with pytest.raises(InvalidValueError, match=problem):
        parse_form(body, b"b")


@given(st.lists(st.sampled_from([b"--b", b"\r\n", b"--", FILE, b"x", b": "]), max_size=30).map(b"".join))
def test_anything_is_read_or_refused(body: bytes) -> None:
    try:
        parts = parse_form(body, b"b")
    except InvalidValueError:
        return
    assert all(part.name for part in parts)
