"""HTTP/1.0, requests without a Host header, and `OPTIONS *`, byte by byte."""

import json
import socket
from typing import Any

import pytest
from fake_backend import FakeBackend
from loopback_server import Server

JSON = b"content-type: application/json\r\n"


def exchange(server: Server, head: bytes, body: Any = None) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Send a request and read until the connection ends; return the status line, the headers and the body."""
    content = b"" if body is None else json.dumps(body).encode()
    length = b"content-length: %d\r\n" % len(content) if content else b""
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=30) as connection:
        connection.sendall(head + length + b"\r\n" + content)
        pieces = []
        while piece := connection.recv(65_536):
            pieces.append(piece)
    top, _, rest = b"".join(pieces).partition(b"\r\n\r\n")
    status, *lines = top.split(b"\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in lines)
    return status, headers, rest


@pytest.mark.parametrize("stream", [False, True])
def test_http_1_0_gets_a_length_and_no_chunks(server: Server, stream: bool) -> None:
    server.backend.pause_s = 0.001
    body = {"prompt": "abcdef", "stream": stream}
    status, headers, content = exchange(server, b"POST /v1/completions HTTP/1.0\r\n" + JSON, body)
    assert status.split()[1] == b"200"
    assert b"transfer-encoding" not in headers
    assert int(headers[b"content-length"]) == len(content)
    if stream:
        assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
        assert content.startswith(b"data: {")
        assert content.endswith(b"data: [DONE]\n\n")
    else:
        assert json.loads(content)["choices"][0]["text"] == "abcdef"


def test_a_stream_to_http_1_0_that_fails_keeps_its_error(server: Server, backend: FakeBackend) -> None:
    backend.fail_after = 3
    backend.pause_s = 0.001
    body = {"prompt": "abcdef", "stream": True}
    _, headers, content = exchange(server, b"POST /v1/completions HTTP/1.0\r\n" + JSON, body)
    assert int(headers[b"content-length"]) == len(content)
    assert b'"internal_error"' in content


def test_http_1_1_needs_a_host(server: Server) -> None:
    status, _, content = exchange(server, b"GET /v1/models HTTP/1.1\r\nconnection: close\r\n")
    assert status.split()[1] == b"400"
    assert json.loads(content)["error"]["code"] == "missing_host"
    status, *_ = exchange(server, b"GET /v1/models HTTP/1.0\r\n")
    assert status.split()[1] == b"200"


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_one_host_is_enough(server: Server, version: bytes) -> None:
    hosts = b"host: x\r\nhost: y\r\nconnection: close\r\n"
    status, _, content = exchange(server, b"GET /v1/models HTTP/" + version + b"\r\n" + hosts)
    assert status.split()[1] == b"400"
    assert "several headers Host" in json.loads(content)["error"]["message"]


def test_no_other_transfer_coding_is_taken_for_text(server: Server) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: gzip, chunked\r\n"
    status, _, content = exchange(server, head + JSON + b"\r\n2\r\n{}\r\n0\r\n")
    assert status.split()[1] == b"415"
    assert json.loads(content)["error"]["code"] == "unsupported_media_type"


def test_the_server_as_a_whole_says_what_it_accepts(server: Server) -> None:
    status, headers, content = exchange(server, b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n")
    assert status.split()[1] == b"204"
    assert headers[b"allow"] == b"get, head, post, options"
    assert content == b""
