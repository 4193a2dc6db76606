"""`mpt-serve batch` against a real HTTP server in this process."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from loopback_server import Server
from typer.testing import CliRunner, Result
from waiting import PATIENCE_S

from mpt_serve.batches import backoff
from mpt_serve.commands import batch_run
from mpt_serve.commands.app import app


class Files:
    """The files of a batch in a folder."""

    def __init__(self, folder: Path) -> None:
        self.requests = folder / "in.jsonl"
        self.outputs = folder / "out.jsonl"
        self.errors = folder / "out.errors.jsonl"

    def write(self, *lines: str | dict[str, Any]) -> None:
        self.requests.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))

    @staticmethod
    def records(file: Path) -> dict[str | None, dict[str, Any]]:
        """Return the records by their custom_id, of which each has one."""
        records = [json.loads(line) for line in file.read_text().splitlines()]
        assert len({record["custom_id"] for record in records}) == len(records)
        return {record["custom_id"]: record for record in records}

    def arguments(self, url: str, *more: str) -> list[str]:
        return ["batch", str(self.requests), str(self.outputs), "--url", url, *more]

    def run(self, url: str, *more: str) -> Result:
        return CliRunner().invoke(app, self.arguments(url, *more))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "_FIRST_S", 0.001)
    monkeypatch.setattr(batch_run, "_LONGEST_WAIT_S", 0.01)


def request(custom_id: str, url: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    body = body or {"prompt": custom_id}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "mpt-echo", **body}}


def test_every_request_has_its_result(server: Server, files: Files) -> None:
    files.write(
        request("a"),
        request("chat", "/v1/chat/completions", messages=[{"role": "user", "content": "hello"}]),
        request("vector", "/v1/embeddings", input="hello"),
        request("response", "/v1/responses", input="hello"),
        "no JSON",
        request("a", prompt="again"),
        request("refused", prompt="x", max_tokens=-1),
    )
    result = files.run(server.url, "--set", "priority=9", "--json")
    assert result.exit_code == 1
    figures = json.loads(result.stdout)
    assert (figures["completed"], figures["failed"], figures["from_earlier_runs"]) == (4, 3, 0)
    outputs = files.records(files.outputs)
    assert outputs.keys() == {"a", "chat", "vector", "response"}
    response = outputs["a"]["response"]
    assert (response["status_code"], response["body"]["choices"][0]["text"]) == (200, "a")
    assert response["request_id"] == ""  # Serve's proxy adds it, and is not here
    errors = [json.loads(line) for line in files.errors.read_text().splitlines()]
    assert {error["error"]["code"] for error in errors if error["error"]} == {
        "invalid_json_line",
        "duplicate_custom_id",
    }
    (refused,) = [error for error in errors if error["custom_id"] == "refused"]
    assert (refused["response"]["status_code"], refused["response"]["body"]["error"]["param"]) == (400, "max_tokens")
    assert {params.priority for _, params in server.backend.started} == {9}


def test_the_same_command_continues(server: Server, files: Files) -> None:
    files.write(request("a"), request("b"))
    assert files.run(server.url).exit_code == 0
    assert len(server.backend.started) == 2
    files.write(request("a"), request("b"), request("c"))
    result = files.run(server.url)
    assert "3 completed, 0 failed, 2 of them by earlier runs" in result.stderr
    assert len(server.backend.started) == 3
    assert files.records(files.outputs).keys() == {"a", "b", "c"}


def test_what_was_killed_continues_without_loss_and_repetition(server: Server, files: Files) -> None:
    names = [f"line {number}" for number in range(60)]
    files.write(*map(request, names))
    backend = server.backend
    command = [sys.executable, "-m", "mpt_serve", *files.arguments(f"{server.url}/v1", "-c", "3")]
    for kill in (signal.SIGKILL, signal.SIGINT):
        before = files.outputs.stat().st_size if files.outputs.exists() else 0
        hang_from = backend.hang_from = len(backend.started) + 10
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        server.wait_until(lambda end=hang_from + 3: len(backend.started) == end)  # type: ignore[misc]
        server.wait_until(lambda before=before: files.outputs.stat().st_size > before)  # type: ignore[misc]
        os.kill(process.pid, kill)
        assert process.wait(PATIENCE_S) == (-signal.SIGKILL if kill == signal.SIGKILL else 130)
        assert 0 < files.outputs.read_bytes().count(b"\n") < len(names)
    backend.hang_from = None
    assert files.run(server.url).exit_code == 0
    outputs = files.records(files.outputs)
    assert {name: outputs[name]["response"]["body"]["choices"][0]["text"] for name in names} == {n: n for n in names}


class Scripted(BaseHTTPRequestHandler):
    """Responds to the requests with one prompt by the statuses listed for it, then with 200."""

    statuses: ClassVar[dict[str, list[int]]] = {}
    seen: ClassVar[Counter[str]] = Counter()

    def do_POST(self) -> None:
        prompt = json.loads(self.rfile.read(int(self.headers["content-length"])))["prompt"]
        number = self.seen[prompt]
        self.seen[prompt] += 1
        statuses = self.statuses.get(prompt, [])
        status = statuses[number] if number < len(statuses) else 200
        if status == 0:  # the server dies
            self.close_connection = True
            return
        plain = status == 404
        body = b"not yet" if plain else json.dumps({"error": {"message": "later"}}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        if status == 429:
            self.send_header("retry-after", "0")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def scripted() -> Any:
    Scripted.statuses, Scripted.seen = {}, Counter()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_is_busy_or_restarts_is_waited_for(scripted: str, files: Files) -> None:
    Scripted.statuses = {"busy": [429, 503, 503], "away": [0, 404, 502], "flaky": [500, 504]}
    files.write(*(request(name, prompt=name) for name in Scripted.statuses))
    assert files.run(scripted).exit_code == 0
    assert files.records(files.outputs).keys() == Scripted.statuses.keys()
    assert Scripted.seen == {"busy": 4, "away": 4, "flaky": 3}


def test_a_request_that_always_fails_is_an_error(scripted: str, files: Files) -> None:
    Scripted.statuses = {"broken": [500] * 9}
    files.write(request("broken"), request("fine"))
    assert files.run(scripted).exit_code == 1
    assert files.records(files.errors)["broken"]["response"]["status_code"] == 500
    assert Scripted.seen == {"broken": 3, "fine": 1}
    files.errors.unlink()
    Scripted.statuses = {}
    assert files.run(scripted).exit_code == 0
    assert files.records(files.outputs).keys() == {"broken", "fine"}


@pytest.mark.parametrize(("statuses", "message"), [([503] * 99, "no response for"), ([401], "responds 401")])
def test_a_server_that_takes_nothing_ends_the_run(
    scripted: str, files: Files, statuses: list[int], message: str
) -> None:
    Scripted.statuses = {"a": statuses}
    files.write(request("a"))
    result = files.run(scripted, "--max-wait", "0")
    assert (result.exit_code, message in result.stderr) == (1, True)
    assert files.outputs.read_bytes() == files.errors.read_bytes() == b""


def test_wrong_arguments(server: Server, files: Files, tmp_path: Path) -> None:
    assert files.run(server.url).exit_code == 2  # no input
    files.write(request("a"))
    assert CliRunner().invoke(app, ["batch", str(files.requests), str(files.requests)]).exit_code == 2
    assert files.run("ftp://x").exit_code == 2
    assert files.run(server.url, "--key", "ä").exit_code == 2
    files.outputs.write_text("my notes")
    result = files.run(server.url)
    assert (result.exit_code, files.outputs.read_text()) == (2, "my notes")
    assert "something else than results" in result.stderr
