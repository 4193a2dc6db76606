"""Runs a coroutine without a task, from a callback of the event loop, as far as it goes without waiting."""

import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any

__all__ = ["run_eagerly"]


def run_eagerly(work: Coroutine[Any, Any, None]) -> Awaitable[None] | None:
    """Run a coroutine up to where it waits; return the rest of it, which a task must await, or None if it has ended."""
    try:
        future = work.send(None)
    except StopIteration:
        return None
    return _rest(work, future)


@types.coroutine
def _rest(work: Coroutine[Any, Any, None], future: Any) -> Generator[Any, None, None]:
    """Continue a coroutine that waits for a future."""
    while True:
        advance: Callable[[], Any] = partial(work.send, None)
        try:
            yield future
        except GeneratorExit:
            work.close()
            raise
        except BaseException as error:
            advance = partial(work.throw, error)
        try:
            future = advance()
        except StopIteration:
            return
