"""A request's output as a stream of events, or as one response."""

import asyncio
import math
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from starlette.responses import Response

from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.output_choice import ChoicePart
from mpt_serve.openai.request_stream import RequestStream
from mpt_serve.openai.response_builder import Chunk, ResponseBuilder, WholeBuilder
from mpt_serve.openai.sampling import SamplingOptions
from mpt_serve.openai.sse import EventStream, json_string
from mpt_serve.openai.usage import Usage

__all__ = ["PlainEvents", "StreamedResponse", "best", "whole_response"]

MANY_TOKENS = 512  # with 20 alternatives each, some 20 ms of work
_STATE_BYTES = 256  # of hidden states, as many as take the time of a token

T = TypeVar("T")


async def whole_response(output: RequestStream, builder: WholeBuilder, options: SamplingOptions) -> Response:
    """Wait for every choice and return the response."""
    gathered: dict[int, list[ChoicePart]] = {}
    while not output.done:
        for part in await output.next():
            gathered.setdefault(part.index, []).append(part)
    parts = [ChoicePart.joined(gathered[index]) for index in sorted(gathered)]
    num_choices, n = options.request.num_choices, options.request.n
    if num_choices > n:
        parts = best(parts, output.mean_logprobs, num_choices, n)
    usage = output.usage
    return await _build(lambda: builder.response(parts, usage), parts)


def best(parts: Sequence[ChoicePart], scores: Sequence[float], best_of: int, n: int) -> list[ChoicePart]:
    """Return the `n` choices with the highest scores of the `best_of` choices of each prompt, best first, renumbered.

    parts, scores: of all choices in order, prompt by prompt. Of equal scores the earlier choice wins; NaN ranks last.
    """
    chosen = []
    for prompt, first in enumerate(range(0, len(parts), best_of)):
        ranking = sorted(range(first, first + best_of), key=lambda index: (_loss(scores[index]), index))
        for rank, index in enumerate(ranking[:n]):
            chosen.append(replace(parts[index], index=prompt * n + rank))
    return chosen


def _loss(score: float) -> float:
    return math.inf if math.isnan(score) else -score


class PlainEvents:
    """Encodes chunks that bring nothing but text; all else in them is the same for one choice, and encoded once."""

    def __init__(self) -> None:
        self._around: dict[int, tuple[bytes, bytes]] = {}  # by choice: what stands before and after the text

    def event(self, part: ChoicePart, encode: Callable[[ChoicePart], bytes]) -> bytes:
        """Return the event of a part with text alone. encode: returns the event of a part's chunk."""
        if part.index not in self._around:
            mark = secrets.token_hex(16)
            before, _, after = encode(ChoicePart(part.index, mark)).partition(json_string(mark))
            self._around[part.index] = before, after
        before, after = self._around[part.index]
        return before + json_string(part.text) + after


class StreamedResponse:
    """Sends an output as it is generated.

    Waits a limited time for the first token before it starts, so that an error until then keeps its status. As long as
    the client keeps up, a callback of the event loop sends what has come; a switch of tasks would cost as much again.
    """

    def __init__(
        self,
        output: RequestStream,
        builder: ResponseBuilder,
        stream: EventStream,
        options: SamplingOptions,
        limits: Limits,
    ) -> None:
        self._output = output
        self._builder = builder
        self._stream = stream
        self._options = options
        self._limits = limits
        plain = builder.plain and not (options.output.by_token or options.request.continuous_usage)
        self._plain_events = PlainEvents() if plain else None
        self._loop = asyncio.get_running_loop()
        self._sent_at = 0.0  # on the loop's clock
        self._waiting: asyncio.Future[None] | None = None  # the task, while the callback sends
        self._unsent: Awaitable[None] | None = None  # the rest of what the callback has begun to send
        self._large_parts: Sequence[ChoicePart] = ()  # what the callback has left to the task
        self._failure: Exception | None = None  # of the callback

    async def send(self) -> None:
        """Send the whole stream, its end included. Raises what ended the output, before or after the start."""
        parts = await self._output.next(self._limits.first_token_wait_s)
        await self._stream.start()
        nothing_yet = replace(self._output.usage, completion_tokens=0)
        opening = [self._event(chunk, nothing_yet) for chunk in self._builder.opening(nothing_yet)]
        await self._send([*opening, *await self._events(parts)])
        while not self._output.done:
            if not self._output.ready:
                await self._let_callback_send()
            if self._failure is not None:
                raise self._failure
            if self._unsent is not None:
                await self._unsent
                self._unsent = None
            if self._large_parts:
                await self._send(await self._events(self._large_parts))
                self._large_parts = ()
            elif self._output.ready:
                await self._send(await self._events(self._output.take()))
            elif not self._output.done and self._loop.time() >= self._keep_alive_at:
                await self._send([self._builder.form.keep_alive])
        await self._stream.send(map(self._builder.form.event, self._builder.closing(self._output.usage)))
        await self._stream.end()

    async def _send(self, events: Iterable[bytes]) -> None:
        await self._stream.send(events)
        self._sent_at = self._loop.time()

    @property
    def _keep_alive_at(self) -> float:
        return self._sent_at + self._limits.keep_alive_s

    # While the client keeps up

    async def _let_callback_send(self) -> None:
        """Return when the callback cannot go on, or when it may be time for a comment that keeps the client waiting."""
        self._waiting = self._loop.create_future()
        timer = self._loop.call_at(self._keep_alive_at, self._wake)
        self._output.listen(self._send_parts)
        try:
            await self._waiting
        finally:
            self._output.listen(None)
            timer.cancel()
            self._waiting = None

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _send_parts(self) -> None:
        """Send what has come, or wake the task, whatever is left to do."""
        if self._waiting is None or self._waiting.done():
            return
        try:
            parts = _visible(self._output.take())
            if _num_tokens(parts) > MANY_TOKENS:
                self._large_parts = parts
            elif body := b"".join(map(self._event_of, parts)):
                self._unsent = self._stream.send_now(body)
                self._sent_at = self._loop.time()
        except Exception as error:
            self._failure = error
        if self._output.done or self._unsent is not None or self._large_parts or self._failure is not None:
            self._wake()

    # Parts as events

    async def _events(self, parts: Sequence[ChoicePart]) -> list[bytes]:
        visible = _visible(parts)
        return await _build(lambda: [self._event_of(part) for part in visible], visible)

    def _event_of(self, part: ChoicePart) -> bytes:
        if self._plain_events is not None and part.text and part.finish_reason is None and not part.prompt_logprobs:
            return self._plain_events.event(part, self._chunk_event)
        return self._chunk_event(part)

    def _chunk_event(self, part: ChoicePart) -> bytes:
        return b"".join(map(self._event, self._builder.chunks(part)))

    def _event(self, chunk: Chunk, usage: Usage | None = None) -> bytes:
        """Return the event of a chunk; `usage` is that of all that has come, unless it is given."""
        if self._options.request.include_usage:
            usage = usage or self._output.usage
            chunk = {**chunk, "usage": usage.body() if self._options.request.continuous_usage else None}
        return self._builder.form.event(chunk)


def _visible(parts: Sequence[ChoicePart]) -> list[ChoicePart]:
    return [part for part in parts if part.text or part.tokens or part.finish_reason]


async def _build(build: Callable[[], T], parts: Sequence[ChoicePart]) -> T:
    """Return what `build` makes of the parts, off the event loop if they report many tokens."""
    return await asyncio.to_thread(build) if _num_tokens(parts) > MANY_TOKENS else build()


def _num_tokens(parts: Sequence[ChoicePart]) -> int:
    """Return how many tokens the parts report, or how many are as much work as their hidden states."""
    return sum(
        len(part.tokens) + len(part.prompt_logprobs or ()) + len(part.hidden_states or b"") // _STATE_BYTES
        for part in parts
    )
