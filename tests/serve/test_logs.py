"""What the logs hold: no text of clients, one line for each request."""

import asyncio
import gc
import json
import logging
import re
from collections.abc import Iterator

import httpx
import pytest
from ray.exceptions import RayTaskError
from server import ServerProcess
from typer.testing import CliRunner
from waiting import wait_for

from mpt_serve.commands.app import app
from mpt_serve.deployments.logs import ClientTextFilter, traceback_without_messages
from mpt_serve.errors import RequestError

SECRET = "zebra-quilt-harbour"


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The lines of Serve's logger behind the filter."""
    formatted: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            formatted.append(self.format(record))

    handler = Collector()
    handler.addFilter(ClientTextFilter())
    loggers = [logging.getLogger(name) for name in ("ray.serve", "asyncio")]
    for logger in loggers:
        logger.addHandler(handler)
    yield formatted
    for logger in loggers:
        logger.removeHandler(handler)


def fail(error: Exception) -> None:
    try:
        raise KeyError(SECRET)
    except KeyError:
        raise error from None


def test_tracebacks_have_frames_and_types_without_messages(lines: list[str]) -> None:
    logger = logging.getLogger("ray.serve")
    try:
        fail(ValueError(SECRET))
    except ValueError as error:
        logger.exception("Request failed.")
        try:
            raise RuntimeError(SECRET) from error
        except RuntimeError:
            logger.exception("Again.")
    assert len(lines) == 2
    assert SECRET not in "".join(lines)
    assert re.search(r'test_logs.py", line \d+, in fail\nbuiltins.ValueError\n', lines[0])
    assert lines[1].index("builtins.ValueError") < lines[1].index("builtins.RuntimeError")


def test_errors_of_other_processes_have_their_frames() -> None:
    remote = f'Traceback:\n  File "/srv/engine.py", line 7, in step\n    do("it")\nValueError: {SECRET}'
    error = RayTaskError("step", remote, ValueError(SECRET))
    text = traceback_without_messages(error)
    assert '  File "/srv/engine.py", line 7, in step' in text
    assert SECRET not in text


def test_refusals_and_calls_are_not_logged_by_serve(lines: list[str]) -> None:
    logger = logging.getLogger("ray.serve")
    try:
        fail(RequestError(SECRET))
    except RequestError:
        logger.exception("Request failed.")
    logger.warning("CALL generate OK 3ms", extra={"serve_access_log": True})
    assert lines == []


def test_forgotten_tasks_do_not_show_their_arguments(lines: list[str]) -> None:
    async def scenario() -> None:
        async def task(text: str) -> None:
            raise ValueError(text)

        asyncio.get_running_loop().create_task(task(SECRET))
        await asyncio.sleep(0.01)

    asyncio.run(scenario())
    gc.collect()
    assert any(line.startswith("Task exception was never retrieved") for line in lines)
    assert SECRET not in "".join(lines)


def test_a_server_logs_no_text_of_its_clients_and_one_line_for_each_request(own_server: ServerProcess) -> None:
    schema = {"type": "object", "properties": {SECRET: {"type": SECRET}}}
    bodies: list[dict[str, object]] = [
        {"prompt": SECRET, "max_tokens": 2},
        {"prompt": SECRET, "max_tokens": 2, "guided_json": schema},
        {"prompt": SECRET, "max_tokens": 2, "guided_grammar": f"root ::= {SECRET} ("},
        {"prompt": SECRET, "max_tokens": 2, "guided_regex": f"({SECRET}"},
        {"prompt": SECRET, "max_tokens": 2, "guided_regex": f"[{SECRET}]{{2}}"},
        {"prompt": SECRET, SECRET: SECRET, "max_tokens": SECRET},
        {"prompt": SECRET, SECRET: SECRET, "max_tokens": 2},
    ]
    with httpx.Client(base_url=own_server.url, timeout=120) as http:
        for body in bodies:
            http.post("/v1/completions", json=body, headers={"x-request-id": f"{SECRET} {SECRET}"})
        for messages in ([{"role": "user", "content": SECRET}], [{"role": SECRET, "content": SECRET}]):
            http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 2})
        http.post("/tokenize", content=f'{{"prompt": "{SECRET}'.encode())
        http.get(f"/{SECRET}?{SECRET}={SECRET}")
        for _ in range(3):
            http.get("/health")
        named = http.post("/v1/completions", json=bodies[0], headers={"x-request-id": "a-request-of-mine"})
        assert named.status_code == 200
    wait_for(lambda: any("a-request-of-mine" in text for text in logs_of(own_server)))
    files = {file: file.read_text(errors="replace") for file in own_server.log_files()}
    text = "\n".join([*files.values(), own_server.output()])
    assert [str(file) for file, content in files.items() if SECRET in content] == []
    assert SECRET not in own_server.output()
    logs = [content for file, content in files.items() if file.suffix == ".log"]  # the terminal's copy is in .err
    in_files = [line for content in logs for line in content.splitlines() if "a-request-of-mine" in line]
    assert len(in_files) == 1, in_files
    assert "POST /v1/completions 200" in in_files[0]
    assert not [line for line in text.splitlines() if " INFO " in line and "GET /health" in line]


def logs_of(server: ServerProcess) -> Iterator[str]:
    """Yield the contents of log files. A line may be written after the response that it is about."""
    yield from (file.read_text(errors="replace") for file in server.log_files() if file.suffix == ".log")


@pytest.mark.slow
def test_the_command_finds_the_running_server(own_server: ServerProcess) -> None:
    folder = own_server.log_files()[0]
    root = next(parent.parent for parent in folder.parents if parent.name == "ray")
    for level in ("info", "critical"):
        result = CliRunner(env={"RAY_TMPDIR": str(root)}).invoke(
            app, ["logs", "-d", "Ingress", "--json", "--level", level]
        )
        assert (result.exit_code, result.stderr) == (0, "")
        messages = [json.loads(line)["message"] for line in result.stdout.splitlines()]
        assert ("Ready: the Generator replies." in messages) == (level == "info")
