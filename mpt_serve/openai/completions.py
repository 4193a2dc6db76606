"""POST /v1/completions: text that continues a prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

from mpt_serve.openai.endpoint import Prepared
from mpt_serve.openai.logprobs import completion_logprobs
from mpt_serve.openai.output_choice import ChoicePart
from mpt_serve.openai.prompt_embeds import read_prompt_embeds
from mpt_serve.openai.prompts import check_prompts, tokenize_prompts
from mpt_serve.openai.protocol.completions import DEFAULT_MAX_TOKENS, CompletionRequest
from mpt_serve.openai.protocol.responses import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionLogprobs,
)
from mpt_serve.openai.response_builder import ResponseBuilder
from mpt_serve.openai.sampling import SamplingOptions
from mpt_serve.openai.server_context import ServerContext
from mpt_serve.openai.usage import Usage

__all__ = ["CompletionResponseBuilder", "prepare_completion"]


class CompletionResponseBuilder(ResponseBuilder):
    """Builds the response of a completion."""

    id_prefix = "cmpl"

    def whole(self, parts: Sequence[ChoicePart], usage: Usage) -> Completion:
        """Return the response without streaming."""
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model_id,
            "choices": [self._whole_choice(part) for part in parts],
            "usage": usage.body(),
        }

    def chunks(self, part: ChoicePart) -> Sequence[CompletionChunk]:
        """Return the chunk of a stream for a piece of a choice."""
        return [self._chunk([self._chunk_choice(part)])]

    def closing(self, usage: Usage) -> Sequence[CompletionChunk]:
        """Return the chunk with the usage, if it is requested."""
        return [{**self._chunk([]), "usage": usage.body()}] if self._output.usage else ()

    def _chunk(self, choices: list[CompletionChunkChoice]) -> CompletionChunk:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model_id,
            "choices": choices,
        }

    def _whole_choice(self, part: ChoicePart) -> CompletionChoice:
        assert part.finish_reason is not None
        return {
            "index": part.index,
            "text": part.text,
            "logprobs": self._logprobs(part),
            "finish_reason": part.finish_reason,
            "stop_reason": part.stop_reason,
            "prompt_logprobs": self._prompt_logprobs(part),
            "prompt_token_ids": self._prompt_ids(part.index) if self._output.token_ids else None,
            "token_ids": part.generated_ids if self._output.token_ids else None,
        }

    def _chunk_choice(self, part: ChoicePart) -> CompletionChunkChoice:
        choice: CompletionChunkChoice = {
            "index": part.index,
            "text": part.text,
            "logprobs": self._logprobs(part),
            "finish_reason": part.finish_reason,
        }
        if part.finish_reason is not None:
            choice["stop_reason"] = part.stop_reason
        if self._output.token_ids:
            if part.index not in self._begun:
                self._begun.add(part.index)
                choice["prompt_token_ids"] = self._prompt_ids(part.index)
            choice["token_ids"] = part.generated_ids
        return choice

    def _logprobs(self, part: ChoicePart) -> CompletionLogprobs | None:
        count = self._output.logprobs
        return None if count is None else completion_logprobs(part.tokens, count, self._names)


async def prepare_completion(context: ServerContext, body: Mapping[str, Any]) -> Prepared:
    """Validate a completion request and tokenize its prompts. Raises ApiError."""
    request = CompletionRequest.parse(body)
    context.require_model(request.model)
    options = SamplingOptions.of(request, context.backend.model)
    await context.require_ready()  # before that the context's length may not be known
    prompts, files, limits = request.prompt or (), request.prompt_embeds, context.limits
    most = limits.max_prompts - len(files)
    check_prompts(context, prompts, "prompt", most, cut=request.truncate_prompt_tokens is not None)
    options.check_choices(len(files) + len(prompts), limits)
    embeds = await read_prompt_embeds(files, context.backend.model)
    ids = await tokenize_prompts(context, prompts, request.add_special_tokens, request.parse_special_tokens)
    return Prepared(
        [*([0] * len(own.rows) for own in embeds), *ids],
        "prompt",
        options,
        DEFAULT_MAX_TOKENS,
        CompletionResponseBuilder,
        CompletionRequest.unknown_fields(body),
        embeds=embeds,
    )
