"""Ends the work for a request when its client disconnects."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

__all__ = ["ClientDisconnectedError", "run_while_connected"]

T = TypeVar("T")


class ClientDisconnectedError(Exception):
    """The client closed the connection, so that no response can be sent."""


async def run_while_connected(
    receive: Receive, work: Coroutine[Any, Any, T], at_disconnect: Callable[[], None] = lambda: None
) -> T:
    """Await the work and return its result, or cancel it and raise ClientDisconnectedError when the client disconnects.

    Either way the work's clean-up has finished. The body must have been read: nothing else may call `receive`.
    at_disconnect: called as soon as the client disconnects. Each switch of tasks costs a turn of the event loop, which
        many disconnects at once make long, and the engine works on meanwhile.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_watch(receive, task, at_disconnect))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done() or (task.cancelled() and watcher.done()):
            raise ClientDisconnectedError
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)
        del task, watcher  # what they have raised refers to this call


async def _watch(receive: Receive, task: asyncio.Future[Any], at_disconnect: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    at_disconnect()
    task.cancel()
