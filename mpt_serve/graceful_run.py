"""How `mpt-serve run` ends: requests that run finish first, and new ones are refused meanwhile.

`serve run` ends its HTTP proxies at once on Ctrl-C, and all processes on SIGTERM, so every response is cut.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

__all__ = ["drain_applications", "ending_gracefully"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_CALL_TIMEOUT_S = 5.0
_LOOK_PERIOD_S = 0.25
_LAST_BYTES_S = 1.0  # for the proxies to send what the Ingress replicas have answered


@contextlib.contextmanager
def ending_gracefully() -> Iterator[None]:
    """Let `serve run`, called in this context, end gracefully at the first SIGINT or SIGTERM, and at once at a second.

    Enter it in the main thread, before Ray starts.
    """
    import ray
    from ray import serve

    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    initialise, shut_down = ray.init, serve.shutdown

    def initialise_and_catch(*args: Any, **options: Any) -> Any:
        context = initialise(*args, **options)
        # Only now: Ray installs its own handlers, one of which writes a native stack trace.
        for number in _SIGNALS:
            signal.signal(number, _interrupt)
        return context

    async def drain_then_shut_down() -> None:
        await drain_applications()
        shut_down()  # in the same event loop, which the handles' routers belong to

    def drain_and_shut_down() -> None:
        asyncio.run(drain_then_shut_down())

    with _replaced(ray, "init", initialise_and_catch), _replaced(serve, "shutdown", drain_and_shut_down):
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Interrupt `serve run`, which then shuts Serve down; the next signal ends the process."""
    for later in _SIGNALS:
        signal.signal(later, _end_at_once)
    raise KeyboardInterrupt


async def drain_applications() -> None:
    """Refuse new requests at every Ingress, and return when all others are answered or have run out of time."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

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


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """End this process, and with it a cluster that it started."""
    os._exit(128 + number)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
