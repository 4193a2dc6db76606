"""Carries deltas from the engine's thread to their requests on an event loop."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from mpt_serve.deployments.delta_wire import merged
from mpt_serve.engine.request import Delta

__all__ = ["DeltaMailbox", "RequestDeltas"]


class RequestDeltas(AsyncIterator[Delta]):
    """The deltas of one request's choices.

    The first is returned at once; those of one choice that arrive while the reader is busy are merged into one.

    Memory is bounded by the request itself: a merged delta holds ids, at most max_tokens for each choice, and the log
    probabilities requested for each.
    """

    def __init__(self, mailbox: "DeltaMailbox", choices: int = 1) -> None:
        self._mailbox = mailbox
        self._unfinished = choices
        self._waiting: dict[int, list[Delta]] = {}  # by choice, in the order in which they began to wait
        self._arrived = asyncio.Event()

    def post(self, delta: Delta) -> None:
        """Take a delta from the engine; thread-safe, never blocks."""
        self._mailbox.post(self, delta)

    def deliver(self, delta: Delta) -> None:
        """Take a delta on the event loop."""
        self._waiting.setdefault(delta.index, []).append(delta)
        self._arrived.set()

    async def __anext__(self) -> Delta:
        """Return the deltas of the choice that has waited longest, merged into one."""
        if self._unfinished == 0:
            raise StopAsyncIteration
        await self._arrived.wait()
        delta = merged(self._waiting.pop(next(iter(self._waiting))))
        if not self._waiting:
            self._arrived.clear()
        self._unfinished -= delta.finish_reason is not None
        return delta


class DeltaMailbox:
    """Carries deltas to the event loop. One wake-up of the loop delivers all that a step produced."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._posted: deque[tuple[RequestDeltas, Delta]] = deque()
        self._wake_up_due = False

    def subscribe(self, choices: int = 1) -> RequestDeltas:
        """Return the deltas of a new request with n `choices`; their `post` is what the engine calls."""
        return RequestDeltas(self, choices)

    def post(self, deltas: RequestDeltas, delta: Delta) -> None:
        """Queue a delta for its request; thread-safe, never blocks."""
        self._posted.append((deltas, delta))
        # The loop clears the flag before it empties the queue, so a delta posted while the flag is set is delivered.
        if not self._wake_up_due:
            self._wake_up_due = True
            self._loop.call_soon_threadsafe(self._deliver_all)

    def _deliver_all(self) -> None:
        self._wake_up_due = False
        while self._posted:
            deltas, delta = self._posted.popleft()
            deltas.deliver(delta)
