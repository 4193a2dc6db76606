"""How `mpt-serve run` ends: requests that run finish first, and new ones are refused meanwhile.

`serve run` ends its HTTP proxies at once on Ctrl-C, and all processes on SIGTERM, so every response is cut.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from ray import serve
from ray.serve.exceptions import RayServeException

__all__ = ["Interrupted", "drain_and_shut_down", "interrupts"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_CALL_TIMEOUT_S = 5.0
_LOOK_PERIOD_S = 0.25
_LAST_BYTES_S = 1.0  # for the proxies to send what the Ingress replicas have answered


class Interrupted(BaseException):
    """The first SIGINT or SIGTERM. Not a KeyboardInterrupt, at which `serve run` would shut Serve down at once."""


@contextlib.contextmanager
def interrupts() -> Iterator[None]:
    """Raise Interrupted in the block at the first SIGINT or SIGTERM; a second one ends the process at once.

    Enter it in the main thread, and when Ray runs: it installs its own handlers, one of which writes a native stack
    trace.
    """
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _end_at_next_signal()
    raise Interrupted


def _end_at_next_signal() -> None:
    for number in _SIGNALS:
        signal.signal(number, _end_at_once)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """End this process, and with it a cluster that it started."""
    os._exit(128 + number)


def drain_and_shut_down() -> None:
    """Drain the applications, then shut Serve down. From now on a signal ends the process at once."""

    async def work() -> None:
        await drain_applications()
        serve.shutdown()  # in the same event loop, which the handles' routers belong to

    _end_at_next_signal()
    asyncio.run(work())


async def drain_applications() -> None:
    """Refuse new requests at every Ingress, and return when all others are answered or have run out of time."""
    handles = []
    for name in serve.status().applications:
        with contextlib.suppress(RayServeException):  # it could not start: there is no Ingress
            handles.append(serve.get_app_handle(name))
    seconds = [s for handle in handles for s in await _ask(handle, "begin_drain")]
    deadline = time.monotonic() + max(seconds, default=0.0)
    running = -1
    while time.monotonic() < deadline:
        now = sum([count for handle in handles for count in await _ask(handle, "num_responses")])
        if now == 0:
            break
        if now != running:
            print(f"Waiting for {now} requests to finish; Ctrl-C again ends at once.", file=sys.stderr)
            running = now
        await asyncio.sleep(_LOOK_PERIOD_S)
    await asyncio.sleep(_LAST_BYTES_S)


async def _ask(handle: Any, method: str) -> list[Any]:
    """Return what the replicas of an Ingress reply; nothing for other applications, and while there are none."""
    try:
        call = handle.broadcast(method)
        replies = await call.results_async(timeout_s=_CALL_TIMEOUT_S, return_exceptions=True)
    except Exception:  # of many kinds: there are no replicas, or they do not reply
        return []
    return [reply for reply in replies if not isinstance(reply, BaseException)]
