"""A request's output as a stream of events, or as one response."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from starlette.responses import JSONResponse

from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.best_of import best
from mpt_serve.openai.output_choice import ChoicePart
from mpt_serve.openai.request_stream import RequestStream
from mpt_serve.openai.response_builder import Chunk, ResponseBuilder
from mpt_serve.openai.sampling import SamplingOptions
from mpt_serve.openai.sse import KEEP_ALIVE, EventStream, event

__all__ = ["StreamedResponse", "whole_response"]

MANY_TOKENS = 512  # with 20 alternatives each, some 20 ms of work

T = TypeVar("T")


async def whole_response(output: RequestStream, builder: ResponseBuilder, options: SamplingOptions) -> JSONResponse:
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
    return await _build(lambda: JSONResponse(builder.whole(parts, usage)), parts)


class StreamedResponse:
    """Sends an output as it is generated.

    Waits a limited time for the first token before it starts, so that an error until then keeps its status.
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

    async def send(self) -> None:
        """Send the whole stream, `[DONE]` included. Raises what ended the output, before or after the start."""
        parts = await self._output.next(self._limits.first_token_wait_s)
        await self._stream.start()
        opening = [self._event(chunk) for chunk in self._builder.opening()]
        await self._stream.send([*opening, *await self._events(parts)])
        while not self._output.done:
            parts = await self._output.next(self._limits.keep_alive_s)
            await self._stream.send(await self._events(parts) if parts else [KEEP_ALIVE])
        if self._options.request.include_usage:
            last = self._builder.chunk(None)
            last["usage"] = self._output.usage.body()
            await self._stream.send([event(last)])
        await self._stream.end()

    async def _events(self, parts: Sequence[ChoicePart]) -> list[bytes]:
        visible = [part for part in parts if part.text or part.tokens or part.finish_reason]
        return await _build(lambda: [self._event(self._builder.chunk(part)) for part in visible], visible)

    def _event(self, chunk: Chunk) -> bytes:
        if self._options.request.include_usage:
            chunk["usage"] = self._output.usage.body() if self._options.request.continuous_usage else None
        return event(chunk)


async def _build(build: Callable[[], T], parts: Sequence[ChoicePart]) -> T:
    """Return what `build` makes of the parts, off the event loop if they report many tokens."""
    tokens = sum(len(part.tokens) + len(part.prompt_logprobs or ()) for part in parts)
    return await asyncio.to_thread(build) if tokens > MANY_TOKENS else build()
