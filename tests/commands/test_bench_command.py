"""`mpt-serve bench` against a real HTTP server in this process."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from loopback_server import Server
from typer.testing import CliRunner, Result

from mpt_serve.commands.app import app
from mpt_serve.load_test.connection import Connections, Target
from mpt_serve.load_test.load import Load, LoadPlan
from mpt_serve.load_test.record import Record
from mpt_serve.load_test.summary import summarize


def bench(server: Server, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", "--url", server.url, *arguments])


def figures(server: Server, *arguments: str) -> dict[str, Any]:
    result = bench(server, *arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_every_request_is_counted(server: Server, api: str) -> None:
    found = figures(
        server, "--api", api, "-n", "12", "-c", "3", "--warmup", "2", "--prompt-tokens", "60", "--output-tokens", "5",
        "--slo-ttft-ms", "1e9", "--slo-itl-ms", "1e9",
    )  # fmt: skip
    assert (found["finished"], found["failed"], found["output_tokens"]) == (12, 0, 60)
    assert found["tokens_are_counted"]
    assert 12 * 40 < found["prompt_tokens"] < 12 * 80  # words of this length
    assert found["goodput"]["requests"] == 12
    assert found["ttft_ms"]["p50"] <= found["e2e_ms"]["p50"] <= found["e2e_ms"]["max"]
    assert len(server.backend.started) == 2 + 2 + 12  # to count words, to warm up, and the test


def test_ignored_ends_lengths_and_other_fields_reach_the_server(server: Server) -> None:
    found = figures(
        server, "-n", "4", "--output-tokens", "7-7", "--ignore-eos", "--set", "top_k=3", "--prompt-tokens", "9"
    )
    assert found["output_tokens"] == 28
    _, params = server.backend.started[-1]
    assert (params.ignore_eos, params.top_k, params.max_tokens) == (True, 3, 7)


def test_a_rate_and_a_duration(server: Server) -> None:
    found = figures(server, "--rate", "200", "-c", "2", "-n", "20", "--output-tokens", "2", "--prompt-tokens", "9")
    assert (found["finished"], found["rate"], found["concurrency"]) == (20, 200, 2)
    found = figures(server, "--duration", "0.05", "--output-tokens", "2", "--prompt-tokens", "9", "--warmup", "0")
    assert found["finished"] >= 1
    assert (found["requests"], found["concurrency"]) == (None, 1)


def test_files_are_written(server: Server, tmp_path: Path) -> None:
    result = bench(server, "-n", "3", "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.svg"))
    assert result.exit_code == 0
    assert "3 requests in" in result.output
    assert "time to first token" in result.output
    assert json.loads((tmp_path / "a.json").read_text())["model"] == "mpt-echo"
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    for option in ("--json", "--plot"):
        result = bench(server, "-n", "1", option, str(tmp_path / "none" / "x"))
        assert (result.exit_code, "was not written" in result.output or "were not written" in result.output) == (
            1,
            True,
        )


def test_errors_are_counted_by_kind(server: Server) -> None:
    result = bench(server, "-n", "2", "--prompt-tokens", "900", "--json", "-")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["errors"] == {"HTTP 400 (context_length_exceeded)": 2}
    server.backend.fail_after = 2
    result = bench(server, "-n", "2", "--warmup", "0", "--json", "-")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["failed"] == 2


def test_wrong_arguments(server: Server) -> None:
    for arguments in (["--prompt-tokens", "9-1"], ["--output-tokens", "x"], ["-n", "0"], ["--set", "x"]):
        assert bench(server, *arguments).exit_code == 2


def test_the_end_by_ctrl_c_leaves_out_what_runs(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task that Ctrl-C cancels is cancelled once two requests have ended and another one hangs."""
    finish = Record.finish
    ended: list[Record] = []

    def finish_and_cancel(record: Record, error: str = "") -> None:
        finish(record, error)
        ended.append(record)
        if len(ended) == 2:
            server.backend.hang_after = 0
            task = next(task for task in asyncio.all_tasks() if task.get_coro().__name__ == "_run")  # type: ignore[union-attr]
            asyncio.get_running_loop().call_later(0.05, task.cancel)

    monkeypatch.setattr(Record, "finish", finish_and_cancel)
    found = figures(server, "-n", "50", "--warmup", "0")
    assert (found["finished"], found["failed"]) == (2, 0)


@contextmanager
def raw_server(*responses: bytes) -> Iterator[int]:
    """Serve each response on a separate connection, which then ends; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for response in responses:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(response)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


async def load_of(port: int, requests: int, timeout_s: float = 30.0) -> Load:
    connections = Connections(Target("127.0.0.1", port), timeout_s)
    load = Load(LoadPlan(requests=requests), connections, lambda _: b"x")
    await load.run()
    connections.close()
    await asyncio.sleep(0)  # a closed transport ends in the loop's next turn
    return load


def test_servers_that_break_off_and_what_is_no_http() -> None:
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    responses = (
        b"", b"SSH-2.0\r\n\r\n", head, head + b"data: [DONE]\n\n", head + b'data: {"choices": [{"text": "a"}]}\n',
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n", b"HTTP/1.1 502 Bad\r\n\r\n<html>",
    )  # fmt: skip
    with raw_server(*responses) as port:
        load = asyncio.run(load_of(port, len(responses)))
    assert [record.error for record in load.records] == [
        "ConnectionResetError",
        "no HTTP (no status line)",
        "incomplete stream",
        "",
        "incomplete stream",
        "ConnectionResetError",
        "HTTP 502 (no JSON)",
    ]
    assert summarize(load.records).finished == 1


def test_a_request_is_sent_again_where_the_server_had_closed_an_idle_connection() -> None:
    body = b"data: [DONE]\n"
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n" + body
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for responses in ([response, None], [response, response]):
                connection, _ = listener.accept()
                with connection:
                    for own in responses:
                        requests.append(connection.recv(65536))
                        if own is not None:
                            connection.sendall(own)

        thread = threading.Thread(target=serve)
        thread.start()
        load = asyncio.run(load_of(listener.getsockname()[1], 3))
        thread.join()
    assert [record.error for record in load.records] == ["", "", ""]
    assert requests == [b"x"] * 4


def test_no_server_and_no_response(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        (record,) = asyncio.run(load_of(port, 1, timeout_s=0.1)).records
        assert record.error == "timeout"
    (record,) = asyncio.run(load_of(port, 1)).records
    assert record.error == "no connection (ConnectionRefusedError)"
