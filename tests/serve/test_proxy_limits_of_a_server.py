"""`mpt-serve run` with small limits: Serve's proxy keeps what is beyond them from everything behind it."""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from server import ServerProcess, free_port, serve_config, stats_of, wait_idle
from waiting import attempts, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CAPACITY = 4
COMPLETION = {"prompt": "Once upon a time", "max_tokens": 8, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[ServerProcess]:
    args = {
        "model": str(tiny_checkpoint),
        "served_model_name": "tiny",
        "max_model_len": 2048,
        "engine": {"max_num_seqs": 4, "pre_compile": False},
        "limits": {
            "max_waiting_requests": CAPACITY,
            "max_unread_bodies": 8,
            "body_timeout_s": 3,
            "max_body_bytes": "64KiB",
            "max_header_bytes": "16KiB",
        },
    }
    config = serve_config(args, free_port())
    with ServerProcess.of(config, tmp_path_factory.mktemp("server"), command="mpt-serve") as server:
        yield server.wait_ready()


def connect(server: ServerProcess, request: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60)
    connection.sendall(request)
    return connection


def rest_of(connection: socket.socket) -> bytes:
    """Return what comes until the connection is closed."""
    pieces = []
    with connection, contextlib.suppress(ConnectionError):
        while piece := connection.recv(65_536):
            pieces.append(piece)
    return b"".join(pieces)


def code_of(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"])


def post(content_length: int, path: str = "/v1/completions", name: str = "a") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-request-id: {name}\r\n"
    return f"{head}content-length: {content_length}\r\nconnection: close\r\n\r\n".encode()


def lines_of(server: ServerProcess, name: str) -> list[str]:
    """Return the lines of the logs that name a request."""
    files = [file for file in server.log_files() if file.suffix == ".log"]
    return [line for file in files for line in file.read_text(errors="replace").splitlines() if name in line]


def is_served(server: ServerProcess) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for path in ("/health", "/ready", "/v1/models"):
            assert http.get(path).status_code == 200
        assert http.post("/v1/completions", json=COMPLETION).status_code == 200


def wait_served(server: ServerProcess) -> None:
    """Wait until there is capacity: requests before count until the proxy knows that they have ended."""
    with httpx.Client(base_url=server.url, timeout=60) as http:
        wait_for(lambda: http.post("/v1/completions", json=COMPLETION).status_code == 200)
    is_served(server)


def test_bodies_that_are_too_large_or_late_do_not_reach_an_ingress(server: ServerProcess) -> None:
    paths = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/nowhere")
    late = [connect(server, post(10, path, "too-late") + b'{"') for path in paths]
    size = 4 * 2**20  # is sent completely before the response is read
    for path in paths:
        large = rest_of(connect(server, post(size, path, "too-large") + b"a" * size))
        assert large.startswith(b"HTTP/1.1 413")
        assert code_of(large) == "request_too_large"
    for answer in map(rest_of, late):
        assert answer.startswith(b"HTTP/1.1 408")
        assert code_of(answer) == "body_timeout"
        assert b"\r\nx-request-id: too-late\r\n" in answer
    is_served(server)
    assert lines_of(server, "too-large") == []
    assert lines_of(server, "too-late") == []


def test_unfinished_bodies_take_no_places_from_others(server: ServerProcess) -> None:
    silent = [connect(server, post(10) + b'{"') for _ in range(40)]
    is_served(server)
    answers = [rest_of(connection) for connection in silent]
    assert {answer.split(b" ")[1] for answer in answers} <= {b"503", b"408"}
    assert {code_of(answer) for answer in answers} <= {"overloaded", "body_timeout"}


def test_headers_that_are_too_late_too_large_or_not_http(server: ServerProcess) -> None:
    late = [connect(server), connect(server, b"GET /health HTTP/1.1\r\nhost: x\r\nx-slow: ")]
    large = connect(server)
    with contextlib.suppress(ConnectionError):  # it answers before it has everything
        large.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"x-more: a\r\n" * 200_000)
    with contextlib.suppress(ConnectionError):
        answer = rest_of(large)
        assert answer == b"" or code_of(answer) == "headers_too_large"
    nonsense = rest_of(connect(server, b"nonsense\r\n\r\n"))
    assert code_of(nonsense) == "invalid_value"
    assert [rest_of(connection) for connection in late] == [b"", b""]
    is_served(server)


def test_an_overload_is_refused_by_the_proxy(server: ServerProcess) -> None:
    """Hundreds are refused, of which an Ingress sees a few; those that run are as many as there is capacity for."""

    async def scenario(attempt: int) -> dict[str, httpx.Response]:
        """Return the responses by their names, beside requests that run all the while; none where these could not."""
        refused: dict[str, httpx.Response] = {}
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as http:
            body = {**COMPLETION, "max_tokens": 1500}
            running = [asyncio.create_task(http.post("/v1/completions", json=body)) for _ in range(CAPACITY)]
            while not any(task.done() for task in running):
                if (await asyncio.to_thread(stats_of, server.url))["running"] == CAPACITY:
                    break
            while not any(task.done() for task in running) and len(refused) < 400:
                names = [f"over-{attempt}-{len(refused)}-{number}-" for number in range(40)]
                headers = [{"x-request-id": name} for name in names]
                posts = (http.post("/v1/completions", json=COMPLETION, headers=own) for own in headers)
                responses = await asyncio.gather(*posts)
                if not any(task.done() for task in running):
                    refused |= zip(names, responses, strict=True)
            for response in await asyncio.gather(*running):  # one before may still have been counted with them
                assert response.status_code == 503 or response.json()["usage"]["completion_tokens"] == 1500
        return refused

    for attempt in attempts("those that run ended before others were refused"):
        wait_served(server)
        if refused := asyncio.run(scenario(attempt)):
            break
    assert {response.status_code for response in refused.values()} == {503}
    assert {response.json()["error"]["code"] for response in refused.values()} == {"overloaded"}
    assert all(1 <= int(response.headers["retry-after"]) <= 120 for response in refused.values())
    seen = [line for line in lines_of(server, f"over-{attempt}-") if any(name in line for name in refused)]
    assert len(seen) < len(refused) / 2
    wait_served(server)


def proxy_pid(server: ServerProcess) -> int:
    own = str(server._folder).encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"ProxyActor" in (process / "cmdline").read_bytes() and own in (process / "environ").read_bytes():
                return int(process.name)
    raise AssertionError("no proxy runs")


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.parametrize("rounds", [3, pytest.param(150, marks=pytest.mark.exhaustive)])
def test_nothing_stays_of_clients_that_leave_or_do_not_read(server: ServerProcess, rounds: int) -> None:
    body = json.dumps({**COMPLETION, "max_tokens": 50, "stream": True}).encode()
    request = post(len(body)) + body

    def one_round() -> None:
        connections = [connect(server, request) for _ in range(12)]  # some are refused
        for connection in connections[::2]:
            connection.close()
        for connection in connections[1::4]:
            connection.recv(100)
            connection.close()
        for connection in connections[3::4]:
            rest_of(connection)

    pid = proxy_pid(server)
    for _ in range(3):
        one_round()
    wait_idle(server.url)
    ingress = server.replica_pid("Ingress")
    before = [open_files(pid), open_files(ingress)]
    memory = [memory_mib(pid), memory_mib(ingress)]
    for _ in range(rounds):
        one_round()
    wait_idle(server.url)
    wait_served(server)
    assert server.replica_pid("Ingress") == ingress
    for own, files, mib in zip((pid, ingress), before, memory, strict=True):
        wait_for(lambda own=own, files=files: open_files(own) <= files + 8)  # Ray's own connections come and go
        assert memory_mib(own) < mib + 64
