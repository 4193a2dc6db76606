"""From the engine's thread to streams on an event loop."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from mpt_serve.engine.request import Delta

__all__ = ["DeltaMailbox", "DeltaStream"]


class DeltaStream(AsyncIterator[Delta]):
    """One request's deltas. The first leaves at once; what arrives while the reader is elsewhere is merged into one.

    Memory is bounded by the request's own max_tokens: what is merged is ids.
    """

    def __init__(self, mailbox: "DeltaMailbox") -> None:
        self._mailbox = mailbox
        self._token_ids: list[int] = []
        self._latest: Delta | None = None
        self._arrived = asyncio.Event()
        self._finished = False

    def post(self, delta: Delta) -> None:
        """Take a delta from the engine; any thread, never blocks."""
        self._mailbox.post(self, delta)

    def deliver(self, delta: Delta) -> None:
        """Take a delta on the event loop."""
        self._token_ids += delta.token_ids
        self._latest = delta
        self._arrived.set()

    async def __anext__(self) -> Delta:
        if self._finished:
            raise StopAsyncIteration
        await self._arrived.wait()
        self._arrived.clear()
        latest, token_ids = self._latest, tuple(self._token_ids)
        assert latest is not None  # set before the event
        self._token_ids.clear()
        self._finished = latest.finish_reason is not None
        return Delta(
            token_ids=token_ids,
            finish_reason=latest.finish_reason,
            stop_reason=latest.stop_reason,
            num_prompt_tokens=latest.num_prompt_tokens,
            num_cached_tokens=latest.num_cached_tokens,
            message=latest.message,
        )


class DeltaMailbox:
    """Carries deltas to the event loop. However many a step produces, one wake-up of the loop takes them all."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._posted: deque[tuple[DeltaStream, Delta]] = deque()
        self._wake_up_due = False

    def stream(self) -> DeltaStream:
        """Return a new stream; its `post` is what the engine calls."""
        return DeltaStream(self)

    def post(self, stream: DeltaStream, delta: Delta) -> None:
        """Queue a delta for its stream; any thread, never blocks."""
        self._posted.append((stream, delta))
        # The loop clears the flag before it empties the queue, so a delta that sees the flag set is still taken.
        if not self._wake_up_due:
            self._wake_up_due = True
            self._loop.call_soon_threadsafe(self._deliver_all)

    def _deliver_all(self) -> None:
        self._wake_up_due = False
        while self._posted:
            stream, delta = self._posted.popleft()
            stream.deliver(delta)
