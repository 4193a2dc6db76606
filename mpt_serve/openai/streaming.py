"""A generation as a stream of events, or as one answer."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from starlette.responses import JSONResponse

from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.best_of import best
from mpt_serve.openai.output_choice import ChoicePart
from mpt_serve.openai.request_stream import RequestStream
from mpt_serve.openai.response_builder import ResponseBuilder
from mpt_serve.openai.sampling import SamplingOptions
from mpt_serve.openai.sse import KEEP_ALIVE, EventStream, event

__all__ = ["StreamedResponse", "whole_response"]

MANY_TOKENS = 512  # with 20 alternatives each, some 20 ms of work

T = TypeVar("T")


async def whole_response(generation: RequestStream, answer: ResponseBuilder, options: SamplingOptions) -> JSONResponse:
    """Wait for every choice and return the answer."""
    gathered: dict[int, list[ChoicePart]] = {}
    while not generation.done:
        for part in await generation.next():
            gathered.setdefault(part.index, []).append(part)
    parts = [ChoicePart.of(gathered[index]) for index in sorted(gathered)]
    made, wanted = options.request.num_choices, options.request.n
    if made > wanted:
        parts = best(parts, generation.mean_logprobs, made, wanted)
    usage = generation.usage
    return await _written(lambda: JSONResponse(answer.whole(parts, usage)), parts)


class StreamedResponse:
    """Sends a generation as it comes. For a time it waits for the first token, so that an error keeps its status."""

    def __init__(
        self,
        generation: RequestStream,
        answer: ResponseBuilder,
        stream: EventStream,
        options: SamplingOptions,
        limits: Limits,
    ) -> None:
        self._generation = generation
        self._answer = answer
        self._stream = stream
        self._options = options
        self._limits = limits

    async def send(self) -> None:
        """Send the whole stream, `[DONE]` included. Raises what the generation raises, before or after the start."""
        parts = await self._generation.next(self._limits.first_token_wait_s)
        await self._stream.start()
        opening = [self._event(chunk) for chunk in self._answer.opening()]
        await self._stream.send([*opening, *await self._events(parts)])
        while not self._generation.done:
            parts = await self._generation.next(self._limits.keep_alive_s)
            await self._stream.send(await self._events(parts) if parts else [KEEP_ALIVE])
        if self._options.request.include_usage:
            await self._stream.send([event({**self._answer.chunk([]), "usage": self._generation.usage.body()})])
        await self._stream.end()

    async def _events(self, parts: Sequence[ChoicePart]) -> list[bytes]:
        said = [part for part in parts if part.text or part.tokens or part.finish_reason]
        return await _written(lambda: [self._chunk(part) for part in said], said)

    def _chunk(self, part: ChoicePart) -> bytes:
        return self._event(self._answer.chunk([self._answer.chunk_choice(part)]))

    def _event(self, chunk: dict[str, Any]) -> bytes:
        if self._options.request.include_usage:
            chunk["usage"] = self._generation.usage.body() if self._options.request.continuous_usage else None
        return event(chunk)


async def _written(write: Callable[[], T], parts: Sequence[ChoicePart]) -> T:
    """Return what `write` makes of the parts: here, or beside the event loop where they tell of many tokens."""
    tokens = sum(len(part.tokens) + len(part.prompt_logprobs or ()) for part in parts)
    return await asyncio.to_thread(write) if tokens > MANY_TOKENS else write()
