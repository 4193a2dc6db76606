"""A child process that replies, dies, or is interrupted."""

import os
import pickle
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpt_serve.child_process import ChildEndedError, ChildProcess, ChildStartError

SCRIPT = """
import json, os, pathlib, signal, sys, time

if json.loads(sys.stdin.readline()).get("broken"):
    sys.exit(1)
print("{}", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request.get("interrupt"):
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(0.1)
    if "end_by" in request and not pathlib.Path(request.get("unless", "")).is_file():
        pathlib.Path(request.get("mark", "/dev/null")).write_text("ended")
        os.kill(os.getpid(), request["end_by"])
    print(json.dumps({"asked": request["text"], "pid": os.getpid()}), flush=True)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return script


@pytest.fixture
def child(script: Path) -> Iterator[ChildProcess]:
    child = ChildProcess(script, {})
    yield child
    child.close()


def asked(child: ChildProcess, text: str) -> str:
    return str(child.ask({"text": text})["asked"])


def test_no_request_gets_the_reply_to_an_interrupted_one(child: ChildProcess) -> None:
    pid = child.ask({"text": "first"})["pid"]
    with pytest.raises(KeyboardInterrupt):
        child.ask({"text": "secret", "interrupt": True})
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert [asked(child, text) for text in ("second", "third")] == ["second", "third"]


def test_an_invalid_request_does_not_affect_the_child(child: ChildProcess) -> None:
    pid = child.ask({"text": "first"})["pid"]
    with pytest.raises(TypeError):
        child.ask({"text": b"no JSON"})
    assert child.ask({"text": "second"})["pid"] == pid


def test_a_child_that_dies_once_is_replaced(child: ChildProcess, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    request = {"text": "first", "end_by": signal.SIGKILL, "unless": mark, "mark": mark}
    assert child.ask(request)["asked"] == "first"


@pytest.mark.parametrize(
    ("number", "timed_out", "killed"),
    [(signal.SIGPROF, True, False), (signal.SIGKILL, False, True), (signal.SIGABRT, False, False)],
)
def test_an_error_says_what_ended_the_child(
    child: ChildProcess, number: signal.Signals, timed_out: bool, killed: bool
) -> None:
    with pytest.raises(ChildEndedError, match=f"ended .*{-number}") as raised:
        child.ask({"text": "first", "end_by": number})
    for error in (raised.value, pickle.loads(pickle.dumps(raised.value))):
        assert (str(error), error.timed_out, error.killed) == (str(raised.value), timed_out, killed)
    assert asked(child, "second") == "second"


def test_work_that_took_too_long_is_not_tried_again(child: ChildProcess, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    with pytest.raises(ChildEndedError):
        child.ask({"text": "first", "end_by": signal.SIGPROF, "unless": mark, "mark": mark})


def test_a_child_that_cannot_start_is_no_fault_of_the_request(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ChildStartError, match="ended"):
        ChildProcess(script, {"broken": True}).ask({"text": "first"})
    monkeypatch.setattr(sys, "executable", "/not/there")
    with pytest.raises(ChildStartError, match="/not/there"):
        ChildProcess(script, {}).ask({"text": "first"})
