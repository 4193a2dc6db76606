"""The backend as requests have it that nobody waits for."""

from collections.abc import Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from mpt_serve.openai.backend import Backend, GenerationRequest, ModelInfo, OnDelta, Readiness, Reservation
from mpt_serve.text.chat_template import Message
from mpt_serve.text.tokenizer import TextTokenizer

__all__ = ["BackgroundBackend"]


class BackgroundBackend:
    """Generates with another backend's capacity where it has some left: implements `Backend`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def model(self) -> ModelInfo:
        """Return the served model."""
        return self._backend.model

    @property
    def tokenizer(self) -> TextTokenizer:
        """Return the model's tokenizer."""
        return self._backend.tokenizer

    async def encode(self, text: str, add_special_tokens: bool, parse_special_tokens: bool) -> Sequence[int]:
        """Return the text's ids."""
        return await self._backend.encode(text, add_special_tokens, parse_special_tokens)

    async def encode_chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        continue_final_message: bool,
        tools: Sequence[Mapping[str, Any]],
        add_special_tokens: bool,
    ) -> Sequence[int]:
        """Return the ids of the rendered conversation."""
        ending = (add_generation_prompt, continue_final_message)
        return await self._backend.encode_chat(messages, *ending, tools, add_special_tokens)

    def retry_after_s(self) -> float | None:
        """Return None: how many of these requests there are is bounded where they come from."""
        return None

    def load(self) -> int:
        """Return the number of choices that wait or run."""
        return self._backend.load()

    def reserve(self) -> AbstractContextManager[Reservation]:
        """Count nothing: the server's capacity is for those who wait."""
        return nullcontext(_Uncounted())

    async def generate(self, request: GenerationRequest, on_delta: OnDelta, stopped_choices: Set[int]) -> None:
        """Generate where other requests leave something; see `Backend.generate`."""
        params = replace(request.params, background=True)
        await self._backend.generate(replace(request, params=params), on_delta, stopped_choices)

    async def readiness(self) -> Readiness:
        """Return whether a request would be served now."""
        return await self._backend.readiness()

    async def wait_ready(self) -> Readiness:
        """Return the readiness, after a bounded wait while replicas are replaced."""
        return await self._backend.wait_ready()


class _Uncounted:
    """A part of the capacity that takes none."""

    def admit(self, prompts: Sequence[int], choices: int) -> None:
        """Accept any request."""
