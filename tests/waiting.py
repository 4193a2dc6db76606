"""Waiting for what happens in other threads and processes, however slow the machine is."""

import asyncio
import time
from collections.abc import Callable, Iterator

PATIENCE_S = 240.0  # only what never happens takes that long


def nothing_known() -> str:
    return "it did not happen"


def wait_for(
    condition: Callable[[], bool],
    what: Callable[[], str] = nothing_known,
    *,
    within_s: float = PATIENCE_S,
    every_s: float = 0.05,
) -> None:
    """Wait until the condition holds. Raises AssertionError with `what` when it does not."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(every_s)


async def until(
    condition: Callable[[], bool], what: Callable[[], str] = nothing_known, *, within_s: float = 30.0
) -> None:
    """As `wait_for`, while the event loop runs."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what()
        await asyncio.sleep(0.001)


def attempts(what: str, count: int = 20) -> Iterator[int]:
    """Yield numbers of attempts, until one succeeds and leaves the loop. Raises AssertionError after the last one.

    For what a test does to requests that run: on a busy machine they may have ended before, which proves nothing.
    """
    yield from range(count)
    raise AssertionError(f"in {count} attempts: {what}")
