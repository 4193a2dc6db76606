"""A child that answers, dies, or is left in the middle of its work."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpt_serve.child_process import ChildProcess

SCRIPT = """
import json, os, signal, sys, time

json.loads(sys.stdin.readline())
for line in sys.stdin:
    request = json.loads(line)
    if request.get("interrupt"):
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(0.1)
    print(json.dumps({"asked": request["text"], "pid": os.getpid()}), flush=True)
"""


@pytest.fixture
def child(tmp_path: Path) -> Iterator[ChildProcess]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    child = ChildProcess(script, {})
    yield child
    child.close()


def asked(child: ChildProcess, text: str) -> str:
    return str(child.ask({"text": text})["asked"])


def test_nobody_gets_the_answer_of_a_request_that_was_interrupted(child: ChildProcess) -> None:
    pid = child.ask({"text": "first"})["pid"]
    with pytest.raises(KeyboardInterrupt):
        child.ask({"text": "secret", "interrupt": True})
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert [asked(child, text) for text in ("second", "third")] == ["second", "third"]


def test_what_is_no_request_leaves_the_child_as_it_is(child: ChildProcess) -> None:
    pid = child.ask({"text": "first"})["pid"]
    with pytest.raises(TypeError):
        child.ask({"text": b"no JSON"})
    assert child.ask({"text": "second"})["pid"] == pid
