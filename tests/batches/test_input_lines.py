"""Lines of a batch's input, and what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import pytest

from mpt_serve.batches import input_lines
from mpt_serve.batches.input_lines import BadLineError, BatchLine, parse_line, read_lines

GOOD = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}


def line(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


def test_a_request() -> None:
    assert parse_line(3, line()) == BatchLine(3, "a", "/v1/completions", {"prompt": "x"})
    without = json.dumps({"custom_id": "a", "body": {}}).encode()
    assert parse_line(1, without, "/v1/embeddings").url == "/v1/embeddings"


@pytest.mark.parametrize(
    ("bad", "code", "custom_id"),
    [
        (b"{", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b"\xff{}", "invalid_json_line", None),
        (b'{"custom_id": NaN}', "invalid_json_line", None),
        (b'{"custom_id": "a", "body": {"prompt": "a", "prompt": "b"}}', "invalid_json_line", None),
        (b'{"custom_id": %s}' % (b"1" * 5000), "invalid_json_line", None),
        (b"[" * 200_000, "invalid_json_line", None),
        (line(custom_id=7), "invalid_custom_id", None),
        (line(custom_id=""), "invalid_custom_id", None),
        (line(custom_id="x" * 513), "invalid_custom_id", None),
        (line(custom_id="\ud800"), "invalid_custom_id", None),
        (line(method="GET"), "invalid_method", "a"),
        (line(url="/v1/files"), "invalid_url", "a"),
        (line(url=["/v1/completions"]), "invalid_url", "a"),
        (line(body=None), "invalid_body", "a"),
        (line(body={"stream": True}), "invalid_body", "a"),
    ],
)
def test_bad_lines_say_what_is_wrong(bad: bytes, code: str, custom_id: str | None) -> None:
    with pytest.raises(BadLineError, match="Line 5") as raised:
        parse_line(5, bad)
    assert (raised.value.code, raised.value.custom_id) == (code, custom_id)


def test_all_requests_of_a_batch_are_for_its_endpoint() -> None:
    with pytest.raises(BadLineError, match="the batch's endpoint, /v1/embeddings"):
        parse_line(1, line(), "/v1/embeddings")


def test_lines_are_read_with_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(b"\xef\xbb\xbfone\r\n\n  \ntwo\nlast")
    assert list(read_lines(file)) == [(1, b"one\r\n"), (4, b"two\n"), (5, b"last")]
    monkeypatch.setattr(input_lines, "MAX_LINE_BYTES", 8)
    file.write_bytes(b"12345678901234567890\n12345678\n1\n")
    long, exact, short = read_lines(file)
    assert (long[0], len(long[1]), exact, short) == (1, 9, (2, b"12345678\n"), (3, b"1\n"))
    with pytest.raises(BadLineError, match="longer than 8 bytes"):
        parse_line(*long)
