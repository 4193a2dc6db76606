"""Forms with files (multipart/form-data, RFC 7578), in bodies that have been read within their limits."""

import re
from dataclasses import dataclass

from mpt_serve.openai.errors import InvalidValueError, UnsupportedMediaTypeError

__all__ = ["FormPart", "form_boundary", "parse_form"]

_MAX_PARTS = 16
_MAX_HEAD = 4096
_MAX_FILENAME = 255
_BOUNDARY = re.compile(r"""[A-Za-z0-9'()+_,./:=? -]{0,69}[A-Za-z0-9'()+_,./:=?-]""")
_PARAMETER = re.compile(r""";\s*([\w!#$&+.^*-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;"\s]*))""", re.ASCII)
_PLAIN_ENCODINGS = frozenset({"7bit", "8bit", "binary"})


@dataclass(frozen=True)
class FormPart:
    """One field. filename: None for one that is no file; it never has folders or control characters in it."""

    name: str
    filename: str | None
    content: bytes


def form_boundary(content_type: str) -> bytes:
    """Return what separates the parts of a form. Raises UnsupportedMediaTypeError for what is no form."""
    media_type, semicolon, rest = content_type.partition(";")
    if media_type.strip().lower() != "multipart/form-data":
        raise UnsupportedMediaTypeError("The body must be a form: send it as multipart/form-data.")
    boundary = _parameters(semicolon + rest).get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise UnsupportedMediaTypeError("The Content-Type must name the form's boundary: 1 to 70 characters.")
    return boundary.encode()


def parse_form(body: bytes, boundary: bytes) -> list[FormPart]:
    """Return the fields of a form, in order. Raises InvalidValueError.

    What RFC 2046 allows beside the parts (a preamble, an epilogue, spaces after boundaries) is refused: no client
    writes it, and parsers disagree about it.
    """
    first, *sections = (b"\r\n" + body).split(b"\r\n--" + boundary, _MAX_PARTS + 2)
    if first or not sections:
        raise InvalidValueError("The body does not begin with the boundary that its Content-Type names.")
    if len(sections) > _MAX_PARTS + 1:
        raise InvalidValueError(f"The form has more than {_MAX_PARTS} parts.")
    if sections.pop().removesuffix(b"\r\n") != b"--":
        raise InvalidValueError("The form has no end: its last boundary must be followed by '--'.")
    return [_part(section) for section in sections]


def _part(section: bytes) -> FormPart:
    head, found, content = section.partition(b"\r\n\r\n")
    if not found or not head.startswith(b"\r\n") or len(head) > _MAX_HEAD:
        raise InvalidValueError("A part of the form has no headers, or too long ones.")
    try:
        lines = head.decode("utf-8").split("\r\n")[1:]
    except UnicodeDecodeError:
        raise InvalidValueError("The headers of a part of the form are not UTF-8.") from None
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    kind, semicolon, rest = headers.get("content-disposition", "").partition(";")
    parameters = _parameters(semicolon + rest)
    if kind.strip().lower() != "form-data" or not parameters.get("name"):
        raise InvalidValueError("A part of the form has no name: 'Content-Disposition: form-data; name=...' is needed.")
    if headers.get("content-transfer-encoding", "binary").lower() not in _PLAIN_ENCODINGS:
        raise InvalidValueError("A part of the form has a Content-Transfer-Encoding: send its bytes as they are.")
    filename = parameters.get("filename")
    return FormPart(parameters["name"], None if filename is None else _plain_name(filename), content)


def _parameters(text: str) -> dict[str, str]:
    """Return the parameters of a header. Raises InvalidValueError if one comes twice."""
    found: dict[str, str] = {}
    for match in _PARAMETER.finditer(text):
        name = match[1].lower()
        if name in found:
            raise InvalidValueError(f"A header of the form has {name!r:.40} twice.")
        found[name] = re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else match[3]
    return found


def _plain_name(filename: str) -> str:
    """Return the last part of a path, for people: nothing is ever stored under this name."""
    name = re.split(r"[/\\]", filename)[-1]
    return "".join(char for char in name if char.isprintable())[:_MAX_FILENAME] or "file"
