"""The signals of `mpt-serve run`: the first drains, the second ends at once."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve
from ray.serve.exceptions import RayServeException

from mpt_serve import graceful_run, serve_run
from mpt_serve.graceful_run import drain_applications
from mpt_serve.serve_run import run_file


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What happens to Ray and Serve, in order; `serve run` returns when it has submitted the file."""
    events: list[str] = []

    async def drain() -> None:
        events.append("drain")

    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Ray has a handler of its own

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(serve, "shutdown", lambda: events.append("shutdown"))
    monkeypatch.setattr(serve_run, "serve_run", SimpleNamespace(make_context=parse, invoke=lambda _: None))
    monkeypatch.setattr(graceful_run, "drain_applications", drain)
    yield events
    for number, handler in handlers.items():
        signal.signal(number, handler)


def parse(name: str, arguments: list[str]) -> SimpleNamespace:
    options = dict.fromkeys(("runtime_env", "runtime_env_json", "working_dir", "address"))
    return SimpleNamespace(params={**options, "app_dir": "."})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [[], ["--blocking"]], ids=["waiting for a failure", "in Serve's own loop"])
def test_the_first_signal_drains_before_serve_shuts_down(
    events: list[str], monkeypatch: pytest.MonkeyPatch, number: signal.Signals, options: list[str]
) -> None:
    def wait(*_: Any) -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:  # as in `serve run`
            events.append("shutdown at once")

    if options:
        monkeypatch.setattr(serve_run.serve_run, "invoke", wait)
    monkeypatch.setattr(serve_run, "_first_failure", wait)
    interrupt = signal.getsignal(signal.SIGINT)
    assert run_file("serve_config.yaml", options) == 0
    assert events == ["drain", "shutdown"]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == (interrupt, signal.SIG_IGN)


def test_an_application_that_cannot_start_ends_the_program_with_one_message(
    events: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve_run, "_first_failure", lambda: "it cannot start")
    assert run_file("serve_config.yaml", []) == 1
    assert capsys.readouterr().err == "mpt-serve: it cannot start\n"
    assert events == ["drain", "shutdown"]


SECOND = """
import os, signal, sys
from mpt_serve.graceful_run import Interrupted, interrupts
with interrupts():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    except Interrupted:
        print("drains", flush=True)
    os.kill(os.getpid(), signal.{})
    signal.pause()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_second_signal_ends_the_process(name: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", SECOND.format(name)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.stdout == "drains\n"
    assert process.returncode == 128 + getattr(signal, name)
    assert not process.stderr


class FakeIngress:
    """The handle of an Ingress whose requests end one by one each time they are counted."""

    def __init__(self, seconds: float, responses: int) -> None:
        self.calls: list[str] = []
        self._seconds = seconds
        self._responses = responses

    def broadcast(self, method: str) -> SimpleNamespace:
        self.calls.append(method)

        async def results(**_: Any) -> list[Any]:
            if method == "begin_drain":
                return [self._seconds, KeyError("a replica that has just ended")]
            self._responses -= 1
            return [self._responses + 1]

        return SimpleNamespace(results_async=results)


@pytest.mark.parametrize(("seconds", "asked"), [(600, 4), (0, 0)])
def test_a_drain_waits_for_the_last_response_or_the_deadline(
    monkeypatch: pytest.MonkeyPatch, seconds: float, asked: int
) -> None:
    ingress = FakeIngress(seconds, 3)
    other = SimpleNamespace(broadcast=lambda method: ingress.undefined)  # not one of our applications
    handles = {"mpt": ingress, "other": other}

    def handle_of(name: str) -> Any:
        if name == "failed":
            raise RayServeException("The application has no ingress.")
        return handles[name]

    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=[*handles, "failed"]))
    monkeypatch.setattr(serve, "get_app_handle", handle_of)
    monkeypatch.setattr(graceful_run, "_LOOK_PERIOD_S", 0)
    monkeypatch.setattr(graceful_run, "_LAST_BYTES_S", 0)
    asyncio.run(drain_applications())
    assert ingress.calls == ["begin_drain", *["num_responses"] * asked]
