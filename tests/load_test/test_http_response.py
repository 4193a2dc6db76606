"""Responses in whatever pieces they arrive."""

import pytest

from mpt_serve.load_test.http_response import HttpResponse, HttpResponseError

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\ndata:\r\n1;x=y\r\n \r\n3\r\n\r\n\n\r\n0\r\n\r\n"
TRAILER = HEAD + b"transfer-encoding: Chunked\r\n\r\n9\r\ndata: \r\n\n\r\n0\r\nx-time: 1\r\n\r\n"
SIZED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 9\r\n\r\ndata: \r\n\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + SIZED


@pytest.mark.parametrize(("data", "status"), [(CHUNKED, 200), (TRAILER, 200), (SIZED, 503), (INTERIM, 503)])
def test_bodies_in_any_two_pieces(data: bytes, status: int) -> None:
    for cut in range(1, len(data)):
        response = HttpResponse()
        body = response.feed(data[:cut])
        assert not response.complete
        assert body + response.feed(data[cut:]) == b"data: \r\n\n"
        assert (response.status, response.complete, response.keeps_open) == (status, True, True)


def test_bodies_byte_by_byte() -> None:
    response = HttpResponse()
    assert b"".join(response.feed(CHUNKED[i : i + 1]) for i in range(len(CHUNKED))) == b"data: \r\n\n"
    assert response.complete


@pytest.mark.parametrize("head", [HEAD + b"\r\n", b"HTTP/1.0 200 OK\r\n\r\n"])
def test_a_body_without_a_length_ends_with_the_connection(head: bytes) -> None:
    response = HttpResponse()
    assert response.feed(head + b"abc") + response.feed(b"d") == b"abcd"
    assert not response.complete
    response.end_of_connection()
    assert response.complete
    assert not response.keeps_open


def test_a_connection_that_ends_early_completes_nothing() -> None:
    for data in (HEAD, SIZED[:-1], CHUNKED[:-2]):
        response = HttpResponse()
        response.feed(data)
        response.end_of_connection()
        assert not response.complete


def test_connections_that_close() -> None:
    for head in (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", b"HTTP/1.0 200 OK\r\n"):
        response = HttpResponse()
        response.feed(head + b"Content-Length: 0\r\n\r\n")
        assert response.complete
        assert not response.keeps_open


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
        b"x" * 70_000,
    ],
)
def test_what_is_no_response(data: bytes) -> None:
    with pytest.raises(HttpResponseError):
        HttpResponse().feed(data)
