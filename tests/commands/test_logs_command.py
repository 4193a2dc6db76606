"""`mpt-serve logs`: the files of a session, in the order of time; the format is that of a started server's files."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mpt_serve.commands.app import app
from mpt_serve.commands.logs import Level
from mpt_serve.serve_logs.log_files import LogFiles
from mpt_serve.serve_logs.log_records import LEVELS, parse_records

ROOT = Path(__file__).parents[2]
INGRESS = """\
INFO 2026-11-28 17:00:01,100 my_app_Ingress aaaa req-1 -- req-1: POST /v1/completions 200 in 0.1 s
ERROR 2026-11-28 17:00:03,000 my_app_Ingress aaaa -- it failed
Traceback (most recent call last):
  ValueError
INFO 2026-11-28 17:00:04,000 my_app_Ingress aaaa req-2 -- req-2: GET /v1/models 200 in 0.0 s
"""
GENERATOR = """\
a line of another program
WARNING 2026-11-28 17:00:02,000 my_app_Generator bbbb -- the context is shortened
"""
CONTROLLER = json.dumps(
    {
        "levelname": "INFO", "asctime": "2026-11-28 17:00:00,000", "component_name": "controller",
        "component_id": "77", "message": "Deploying new app.",
    }
)  # fmt: skip


@pytest.fixture
def session(tmp_path: Path) -> Path:
    folder = tmp_path / "ray" / "session_2026"
    logs = folder / "logs" / "serve"
    logs.mkdir(parents=True)
    (logs / "replica_my_app_Ingress_aaaa.log").write_text(INGRESS)
    (logs / "replica_my_app_Generator_bbbb.log").write_text(GENERATOR)
    (logs / "controller_77.log").write_text(CONTROLLER + "\n")
    return folder


def logs(session: Path | None, *arguments: str, **environment: str) -> Result:
    named = [] if session is None else ["--session", str(session)]
    return CliRunner(env=environment).invoke(app, ["logs", *named, *arguments])


def shown(session: Path, *arguments: str) -> list[str]:
    """Return the records' messages, their first lines."""
    result = logs(session, "--json", *arguments)
    assert result.exit_code == 0, result.output
    return [json.loads(line)["message"].partition("\n")[0] for line in result.output.splitlines()]


def test_levels_are_those_of_records() -> None:
    assert tuple(Level) == LEVELS


def test_records_come_in_the_order_of_time(session: Path) -> None:
    messages = [
        "Deploying new app.",
        "req-1: POST /v1/completions 200 in 0.1 s",
        "the context is shortened",
        "it failed",
        "req-2: GET /v1/models 200 in 0.0 s",
    ]
    assert shown(session) == messages
    assert shown(session, "-n", "2") == messages[-2:]
    assert shown(session, "-n", "0") == []
    lines = logs(session).output.splitlines()
    assert lines == [CONTROLLER, INGRESS.splitlines()[0], GENERATOR.splitlines()[1], *INGRESS.splitlines()[1:]]


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        (["--deployment", "ingress"], [1, 3, 4]),
        (["-d", "controller"], [0]),
        (["--level", "warning"], [2, 3]),
        (["-l", "error", "-d", "Generator"], []),
        (["--request", "req-2"], [4]),
    ],
)
def test_filters(session: Path, options: list[str], numbers: list[int]) -> None:
    everything = shown(session)
    assert shown(session, *options) == [everything[number] for number in numbers]


def test_fields_of_records(session: Path) -> None:
    (record,) = parse_records(INGRESS.splitlines()[:1])
    assert record.application == "my_app"
    assert (record.deployment, record.replica, record.request_id, record.level) == ("Ingress", "aaaa", "req-1", "info")
    failed = json.loads(logs(session, "--json", "-l", "error").output)
    assert failed["message"] == "it failed\nTraceback (most recent call last):\n  ValueError"
    assert failed["time"] == "2026-11-28 17:00:03,000"


def test_lines_that_are_no_records_belong_to_the_one_before() -> None:
    lines = ["{", '{"levelname": "LOUD", "asctime": "", "message": ""}', INGRESS.splitlines()[0], "{}", "[1]"]
    assert [record.text.count("\n") for record in parse_records(lines)] == [2]


def test_files_are_read_on_from_where_they_ended(session: Path) -> None:
    files = LogFiles(session / "logs" / "serve")
    assert len(files.read()) == 5
    assert files.read() == []
    path = session / "logs" / "serve" / "replica_my_app_Ingress_aaaa.log"
    more = INGRESS.splitlines()[0].replace("req-1", "req-9")
    with path.open("a") as file:
        file.write(more)
        file.flush()
        assert files.read() == []  # the line may not be complete
        file.write("\n")
    path.rename(path.with_name(f"{path.name}.1"))
    path.write_text(more.replace("req-9", "req-10") + "\n")
    assert {record.request_id for record in files.read()} == {"req-9", "req-10"}


@pytest.fixture
def following(session: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "mpt_serve", "logs", "--session", str(session), "-f", "-n", "1", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        yield process
        process.kill()


def test_follow_shows_what_is_logged_later(session: Path, following: "subprocess.Popen[str]") -> None:
    assert following.stdout is not None
    assert json.loads(following.stdout.readline())["request_id"] == "req-2"
    (session / "logs" / "serve" / "replica_my_app_Tokenizer_cccc.log").write_text(
        "INFO 2026-11-28 17:00:05,000 my_app_Tokenizer cccc -- Signs of life\n"
    )
    assert json.loads(following.stdout.readline())["message"] == "Signs of life"
    following.send_signal(signal.SIGINT)
    assert following.wait(60) == 130


def test_sessions_that_are_none(tmp_path: Path, session: Path) -> None:
    assert "--session must be a Ray session" in logs(tmp_path).output
    empty = tmp_path / "empty"
    empty.mkdir()
    result = logs(None, RAY_TMPDIR=str(empty))
    assert (result.exit_code, "name a --session" in result.output) == (1, True)
    result = logs(None, "-n", "1", RAY_TMPDIR=str(tmp_path))  # a server that has ended
    assert (result.exit_code, "no server runs" in result.stderr, "req-2" in result.stdout) == (0, True, True)
