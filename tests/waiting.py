"""Waiting for what happens in other threads and processes, however slow the machine is."""

import time
from collections.abc import Callable, Iterator

PATIENCE_S = 240.0  # only what never happens takes that long


def wait_for(condition: Callable[[], bool], what: Callable[[], str] = lambda: "it did not happen") -> None:
    """Wait until the condition holds. Raises AssertionError with `what` when it does not."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


def attempts(what: str, count: int = 20) -> Iterator[int]:
    """Yield numbers of attempts, until one succeeds and leaves the loop. Raises AssertionError after the last one.

    For what a test does to requests that run: on a busy machine they may have ended before, which proves nothing.
    """
    yield from range(count)
    raise AssertionError(f"in {count} attempts: {what}")
