"""From the engine's thread to streams on an event loop."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

from mpt_serve.engine.request import Delta, TokenLogprobs

__all__ = ["DeltaMailbox", "DeltaStream"]


class DeltaStream(AsyncIterator[Delta]):
    """The deltas of one request's choices. The first leaves at once; what a choice says while the reader is elsewhere
    is merged into one delta.

    Memory is bounded by the request itself: what is merged is ids, at most max_tokens for each choice, and what was
    asked to be known about each.
    """

    def __init__(self, mailbox: "DeltaMailbox", choices: int = 1) -> None:
        self._mailbox = mailbox
        self._unfinished = choices
        self._waiting: dict[int, list[Delta]] = {}  # by choice, in the order in which they began to wait
        self._arrived = asyncio.Event()

    def post(self, delta: Delta) -> None:
        """Take a delta from the engine; any thread, never blocks."""
        self._mailbox.post(self, delta)

    def deliver(self, delta: Delta) -> None:
        """Take a delta on the event loop."""
        self._waiting.setdefault(delta.index, []).append(delta)
        self._arrived.set()

    async def __anext__(self) -> Delta:
        """Return the news about the choice that waits longest."""
        if self._unfinished == 0:
            raise StopAsyncIteration
        await self._arrived.wait()
        delta = _merged(self._waiting.pop(next(iter(self._waiting))))
        if not self._waiting:
            self._arrived.clear()
        self._unfinished -= delta.finish_reason is not None
        return delta


def _merged(deltas: Sequence[Delta]) -> Delta:
    """Return one choice's deltas as one."""
    if len(deltas) == 1:
        return deltas[0]
    latest = deltas[-1]
    told: list[TokenLogprobs] = [own for delta in deltas if delta.logprobs for own in delta.logprobs]
    prompts = (delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs is not None)
    return Delta(
        token_ids=tuple(token_id for delta in deltas for token_id in delta.token_ids),
        finish_reason=latest.finish_reason,
        stop_reason=latest.stop_reason,
        num_prompt_tokens=latest.num_prompt_tokens,
        num_cached_tokens=latest.num_cached_tokens,
        message=latest.message,
        index=latest.index,
        logprobs=tuple(told) if any(delta.logprobs is not None for delta in deltas) else None,
        prompt_logprobs=next(prompts, None),
    )


class DeltaMailbox:
    """Carries deltas to the event loop. However many a step produces, one wake-up of the loop takes them all."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._posted: deque[tuple[DeltaStream, Delta]] = deque()
        self._wake_up_due = False

    def stream(self, choices: int = 1) -> DeltaStream:
        """Return a new stream for a request of so many choices; its `post` is what the engine calls."""
        return DeltaStream(self, choices)

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
