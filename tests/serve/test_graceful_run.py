"""The signals of `mpt-serve run`: the first drains, the second ends at once."""

import asyncio
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve
from ray.serve.exceptions import RayServeException

from mpt_serve import graceful_run
from mpt_serve.graceful_run import drain_applications, ending_gracefully


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to Ray and Serve, in order."""
    events: list[str] = []

    async def drain() -> None:
        events.append("drain")

    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Ray has a handler of its own

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(serve, "shutdown", lambda: events.append("shutdown"))
    monkeypatch.setattr(graceful_run, "drain_applications", drain)
    return events


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_drains_before_serve_shuts_down(events: list[str], number: signal.Signals) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    original = serve.shutdown
    try:
        with ending_gracefully():
            ray.init()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
            serve.shutdown()  # what `serve run` does then
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    finally:
        signal.signal(signal.SIGTERM, handlers[1])
    assert events == ["drain", "shutdown"]
    assert serve.shutdown is original


SECOND = """
import os, signal, sys
from mpt_serve.graceful_run import _interrupt
signal.signal(signal.SIGTERM, _interrupt)
try:
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
except KeyboardInterrupt:
    print("drains", flush=True)
os.kill(os.getpid(), signal.{})
signal.pause()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_second_signal_ends_the_process(name: str) -> None:
    process = subprocess.run([sys.executable, "-c", SECOND.format(name)], capture_output=True, text=True, timeout=120)
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
