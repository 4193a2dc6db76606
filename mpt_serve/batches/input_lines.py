"""The input of a batch: one request in each line, in the form of OpenAI's batches."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from model.checkpoint.json_names import RepeatedNameError, unique_members
from mpt_serve.errors import MptServeError

__all__ = ["BATCH_ENDPOINTS", "MAX_LINE_BYTES", "BadLineError", "BatchLine", "parse_line", "read_lines"]

BATCH_ENDPOINTS = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/responses")
MAX_LINE_BYTES = 16 * 1024**2
MAX_ID_CHARS = 512
_UNPAIRED = re.compile(r"[\ud800-\udfff]")  # half of a character, which JSON can hold and UTF-8 cannot


class BadLineError(MptServeError):
    """A line that is no request. code: of its record among the errors. custom_id: its own, where that can be used."""

    def __init__(self, code: str, message: str, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.custom_id = custom_id


@dataclass(frozen=True)
class BatchLine:
    """One request. number: of its line, from 1. url: one of `BATCH_ENDPOINTS`."""

    number: int
    custom_id: str
    url: str
    body: Mapping[str, Any]


def read_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not empty with their numbers, from 1. Of a longer one than `MAX_LINE_BYTES`, a part.

    A byte order mark at the beginning is skipped. Raises OSError.
    """
    with file.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            part = line
            while part and not part.endswith(b"\n"):  # what is beyond is not kept
                part = stream.readline(MAX_LINE_BYTES)
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield number, line


def parse_line(number: int, line: bytes, endpoint: str | None = None) -> BatchLine:
    """Return the request of a line. endpoint: of the whole batch; None for any. Raises BadLineError."""
    if len(line) > MAX_LINE_BYTES:
        raise BadLineError("line_too_long", f"Line {number} is longer than {MAX_LINE_BYTES} bytes.")
    content = _parse_object(number, line)
    custom_id = content.get("custom_id")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_ID_CHARS or _UNPAIRED.search(custom_id):
        message = f"Line {number}: 'custom_id' must be a string of 1 to {MAX_ID_CHARS} characters."
        raise BadLineError("invalid_custom_id", message)
    if content.get("method", "POST") != "POST":
        raise BadLineError("invalid_method", f"Line {number}: 'method' must be 'POST'.", custom_id)
    url = content.get("url", endpoint)
    accepted = BATCH_ENDPOINTS if endpoint is None else (endpoint,)
    if url not in accepted:
        kind = "the batch's endpoint, " if endpoint is not None else ""
        message = f"Line {number}: 'url' must be {kind}{' or '.join(accepted)}."
        raise BadLineError("invalid_url", message, custom_id)
    body = content.get("body")
    if not isinstance(body, dict):
        raise BadLineError("invalid_body", f"Line {number}: 'body' must be an object.", custom_id)
    if body.get("stream"):
        message = f"Line {number}: 'body.stream' must be false: results of a batch are not streamed."
        raise BadLineError("invalid_body", message, custom_id)
    return BatchLine(number, custom_id, str(url), body)


def _parse_object(number: int, line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=unique_members)
    except UnicodeDecodeError:
        problem = "is not UTF-8"
    except RepeatedNameError:
        problem = "has a member of an object twice"
    except json.JSONDecodeError as error:
        problem = f"is not JSON: {error.msg}, column {error.colno}"
    except RecursionError:
        problem = "is nested too deeply"
    except ValueError:  # an integer of thousands of digits, NaN
        problem = "holds a number that is not JSON, or has too many digits"
    else:
        if isinstance(content, dict):
            return content
        problem = "must be a JSON object with 'custom_id', 'method', 'url' and 'body'"
    raise BadLineError("invalid_json_line", f"Line {number} {problem}.")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
