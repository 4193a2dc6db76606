"""A generation as a stream of events, or as one answer."""

from collections.abc import Sequence
from typing import Any

from starlette.responses import JSONResponse

from mpt_serve.openai.answer import Answer
from mpt_serve.openai.choice import ChoicePart
from mpt_serve.openai.generation import Generation
from mpt_serve.openai.limits import Limits
from mpt_serve.openai.sampling import SamplingOptions
from mpt_serve.openai.sse import KEEP_ALIVE, EventStream, event

__all__ = ["StreamedAnswer", "whole_answer"]


async def whole_answer(generation: Generation, answer: Answer) -> JSONResponse:
    """Wait for every choice and return the answer."""
    texts: dict[int, list[str]] = {}
    last: dict[int, ChoicePart] = {}
    while not generation.done:
        for part in await generation.next():
            texts.setdefault(part.index, []).append(part.text)
            last[part.index] = part
    parts = [
        ChoicePart(index, "".join(texts[index]), last[index].finish_reason, last[index].stop_reason)
        for index in sorted(last)
    ]
    return JSONResponse(answer.whole(parts, generation.usage))


class StreamedAnswer:
    """Sends a generation as it comes. Nothing is sent before the first token, so that an error keeps its status."""

    def __init__(
        self, generation: Generation, answer: Answer, stream: EventStream, options: SamplingOptions, limits: Limits
    ) -> None:
        self._generation = generation
        self._answer = answer
        self._stream = stream
        self._options = options
        self._limits = limits

    async def send(self, choices: int) -> None:
        """Send the whole stream, `[DONE]` included. Raises what the generation raises, before or after the start."""
        parts = await self._generation.next(self._limits.first_token_wait_s)
        await self._stream.start()
        opening = [self._event([choice]) for choice in self._answer.opening_choices(choices)]
        await self._stream.send([*opening, *self._events(parts)])
        while not self._generation.done:
            parts = await self._generation.next(self._limits.keep_alive_s)
            await self._stream.send(self._events(parts) if parts else [KEEP_ALIVE])
        if self._options.include_usage:
            await self._stream.send([event({**self._answer.chunk([]), "usage": self._generation.usage.body()})])
        await self._stream.end()

    def _events(self, parts: Sequence[ChoicePart]) -> list[bytes]:
        return [self._event([self._answer.chunk_choice(part)]) for part in parts if part.text or part.finish_reason]

    def _event(self, choices: Sequence[dict[str, Any]]) -> bytes:
        chunk = self._answer.chunk(choices)
        if self._options.include_usage:
            chunk["usage"] = self._generation.usage.body() if self._options.continuous_usage else None
        return event(chunk)
