"""Clients that send too much, too slowly or nonsense, against a running server: others are served all the while."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from server import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def http(server_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server_url, timeout=300) as client:
        yield client


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port or 80), timeout=300)


def exchange(url: str, request: bytes) -> bytes:
    """Send bytes and return everything that comes until the connection is closed."""
    with connect(url) as connection:
        connection.sendall(request)
        pieces = []
        while piece := connection.recv(65_536):
            pieces.append(piece)
    return b"".join(pieces)


def is_served(http: httpx.Client) -> None:
    for path in ("/health", "/ready", "/v1/models", "/version"):
        assert http.get(path).status_code == 200
    completion = http.post("/v1/completions", json={"prompt": "Once upon a time", "max_tokens": 4})
    assert completion.status_code == 200, completion.text
    assert http.post("/tokenize", json={"prompt": "a b c"}).status_code == 200


@contextmanager
def senders(url: str, path: str, content: bytes, count: int) -> Iterator[Mapping[int, int]]:
    """Send a body again and again with several connections; yields the number of responses by status."""
    stop, statuses = threading.Event(), dict[int, int]()

    def send() -> None:
        with httpx.Client(base_url=url, timeout=300) as client:
            while not stop.is_set():
                response = client.post(path, content=content, headers={"content-type": "application/json"})
                assert response.headers["content-type"] == "application/json"
                statuses[response.status_code] = statuses.get(response.status_code, 0) + 1

    threads = [threading.Thread(target=send) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("/tokenize", b'{"prompt": "' + b"the cat sat " * (4 * MIB // 12 - 10) + b'"}', {400, 503}),
        ("/tokenize", b'{"prompt": "' + "🎉".encode() * 140_000 + b'"}', {200, 503}),
        (
            "/v1/completions",
            b'{"max_tokens": 1, "truncate_prompt_tokens": 5, "prompt": "' + b"the cat sat " * 43_000 + b'"}',
            {200, 503},
        ),
    ],
    ids=["larger than allowed", "as large as allowed", "truncated"],
)
def test_large_bodies_stop_nobody(
    own_server: ServerProcess, http: httpx.Client, path: str, content: bytes, expected: set[int]
) -> None:
    before = own_server.replica_pid("Tokenizer")
    with senders(own_server.url, path, content, 12) as statuses:
        for _ in range(3):
            is_served(http)
        while not statuses:
            is_served(http)
    assert set(statuses) <= expected
    assert own_server.replica_pid("Tokenizer") == before  # one whose health checks fail would be replaced


def test_a_response_above_4_mib_arrives(http: httpx.Client) -> None:
    """Through Serve, where 4 MiB are the default limit of a message."""
    body = {"prompt": "\u00e9" * 300_000, "return_token_strs": True}
    answer = http.post("/tokenize", json=body)
    assert answer.status_code == 200
    assert len(answer.content) > 4 * 2**20
    assert answer.json()["count"] == 600_000


def test_more_requests_than_there_is_capacity_for(server_url: str, http: httpx.Client) -> None:
    """400 at once, where 256 may wait or run: those are served in full, the others learn when to come back."""

    async def burst() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=400)
        async with httpx.AsyncClient(base_url=server_url, timeout=300, limits=limits) as client:
            body = {"prompt": "Once upon a time", "max_tokens": 8, "ignore_eos": True}
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(400)))

    responses = asyncio.run(burst())
    served = [response.json() for response in responses if response.status_code == 200]
    assert len(served) >= 256
    assert all(body["usage"]["completion_tokens"] == 8 for body in served)
    for response in responses:
        if response.status_code != 200:
            assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
            assert 1 <= int(response.headers["retry-after"]) <= 120
            assert int(response.headers["retry-after-ms"]) <= 120_000
    is_served(http)


def test_more_unfinished_bodies_than_there_are_places(server_url: str, http: httpx.Client) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
    silent = []
    try:
        for number in range(520):
            silent.append(connect(server_url))
            silent[-1].sendall(head)
            if number % 130 == 129:
                is_served(http)
        answer = silent[0].recv(65_536)
        assert answer.startswith((b"HTTP/1.1 503", b"HTTP/1.1 408"))  # 408 where sending them all took 30 s
        assert b'"code":"overloaded"' in answer or b'"code":"body_timeout"' in answer
        is_served(http)
    finally:
        for connection in silent:
            connection.close()


def test_unfinished_headers_and_idle_connections_stop_nobody(server_url: str, http: httpx.Client) -> None:
    connections = [connect(server_url) for _ in range(600)]
    try:
        for connection in connections[::2]:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-slow: ")
        is_served(http)
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.parametrize(
    "header",
    [
        *(b"x-request-id: \xff", b"x-session-id: \xff", b"serve_multiplexed_model_id: \xff"),
        *(b"x-request-timeout-seconds: 0.000001", b"traceparent: \xff", b"x-request-id: a\r\nx-request-id: \xff"),
    ],
)
def test_no_header_makes_serve_answer_in_plain_text(server_url: str, header: bytes) -> None:
    answer = exchange(server_url, b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + header + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"\xff" not in answer
    assert answer.lower().count(b"x-request-id: ") == 1


@pytest.mark.parametrize(
    ("start", "status"),
    [
        *(
            ("nonsense", 400),
            ("BREW /health HTTP/1.1", 400),
            ("GET /health HTTP/7.7", 400),
            ("CONNECT x:1 HTTP/1.1", 400),
        ),
        *(("GET * HTTP/1.1", 404), ("GET /\xff HTTP/1.1", 400), ("PROPFIND /v1/models HTTP/1.1", 405)),
        *(("TRACE /health HTTP/1.1", 405), ("DELETE /v1/completions HTTP/1.1", 405), ("OPTIONS /health HTTP/1.1", 405)),
        *(("GET //health HTTP/1.1", 404), ("GET /%00 HTTP/1.1", 404), ("GET /%ff HTTP/1.1", 404)),
        *(("POST /nowhere HTTP/1.1", 404), ("GET http://x/nowhere HTTP/1.1", 404), ("GET /health/.. HTTP/1.1", 404)),
    ],
)
def test_every_error_is_one_of_the_api(server_url: str, start: str, status: int) -> None:
    request = f"{start}\r\nhost: x\r\nconnection: close\r\n\r\n".encode("latin-1")
    head, _, body = exchange(server_url, request).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d" % status), head
    assert b"content-type: application/json" in head
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_the_server_as_a_whole_says_what_it_accepts(server_url: str) -> None:
    answer = exchange(server_url, b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 204")
    assert b"allow: GET, HEAD, POST, OPTIONS" in answer


def test_too_many_headers(server_url: str) -> None:
    lines = b"".join(b"x-%d: a\r\n" % number for number in range(300))
    answer = exchange(server_url, b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + lines + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 431")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_large"


def test_no_websocket_is_opened(server_url: str) -> None:
    upgrade = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    request = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nsec-websocket-version: 13\r\n" + upgrade + b"\r\n"
    assert exchange(server_url, request).startswith(b"HTTP/1.1 403")
