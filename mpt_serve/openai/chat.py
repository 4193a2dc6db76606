"""POST /v1/chat/completions: the assistant's next message."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from mpt_serve.openai.endpoint import Prepared
from mpt_serve.openai.logprobs import chat_logprobs
from mpt_serve.openai.output_choice import ChoicePart
from mpt_serve.openai.protocol.chat import ChatCompletionRequest
from mpt_serve.openai.protocol.responses import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
)
from mpt_serve.openai.response_builder import ResponseBasis, ResponseBuilder
from mpt_serve.openai.sampling import SamplingOptions
from mpt_serve.openai.server_context import ServerContext
from mpt_serve.openai.tool_messages import new_message
from mpt_serve.openai.usage import Usage

__all__ = ["ChatResponseBuilder", "prepare_chat", "prepare_conversation"]


class ChatResponseBuilder(ResponseBuilder):
    """Builds the response of a chat completion.

    echoed_text: what each message begins with. tools: whether the messages may have, or must have, calls of tools.
    """

    id_prefix = "chatcmpl"

    def __init__(
        self, basis: ResponseBasis, echoed_text: str = "", tools: Literal["none", "auto", "required"] = "none"
    ) -> None:
        super().__init__(basis)
        self._echoed_text = echoed_text
        self._tools = tools
        self._messages = [new_message(self._calls) for _ in range(basis.choices)]

    @property
    def plain(self) -> bool:
        return not self._calls

    @property
    def _calls(self) -> bool:
        return self._tools != "none"

    def whole(self, parts: Sequence[ChoicePart], usage: Usage) -> ChatCompletion:
        """Return the response without streaming."""
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model_id,
            "choices": [self._whole_choice(part) for part in parts],
            "usage": usage.body(),
            "prompt_logprobs": self._prompt_logprobs(parts[0]),
            "prompt_token_ids": self._prompt_ids(0) if self._output.token_ids else None,
        }

    def opening(self, usage: Usage) -> Sequence[ChatCompletionChunk]:
        """Return a chunk with the role for each choice, the first with the prompt's ids if they are requested."""
        without_text = self._tools == "required" and not self._echoed_text
        deltas: list[ChatDelta] = [{"role": "assistant", "content": None if without_text else ""}]
        if self._echoed_text:
            deltas.append({"content": self._echoed_text})
        chunks = [
            self._chunk([{"index": i, "delta": delta, "logprobs": None, "finish_reason": None}])
            for delta in deltas
            for i in range(self._choices)
        ]
        if self._output.token_ids:
            chunks[0]["prompt_token_ids"] = self._prompt_ids(0)
        return chunks

    def chunks(self, part: ChoicePart) -> Sequence[ChatCompletionChunk]:
        """Return the chunk of a stream for a piece of a choice; none if the piece adds nothing."""
        choice = self._chunk_choice(part)
        return () if choice is None else [self._chunk([choice])]

    def closing(self, usage: Usage) -> Sequence[ChatCompletionChunk]:
        """Return the chunk with the usage, if it is requested."""
        return [{**self._chunk([]), "usage": usage.body()}] if self._output.usage else ()

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatCompletionChunk:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model_id,
            "choices": choices,
        }

    def _whole_choice(self, part: ChoicePart) -> ChatChoice:
        reader = new_message(self._calls)
        message, finish_reason = reader.whole(part), reader.finish_reason(part)
        if self._echoed_text:
            message["content"] = self._echoed_text + (message["content"] or "")
        assert finish_reason is not None
        return {
            "index": part.index,
            "message": message,
            "logprobs": self._logprobs(part),
            "finish_reason": finish_reason,
            "stop_reason": part.stop_reason,
            "token_ids": part.generated_ids if self._output.token_ids else None,
        }

    def _chunk_choice(self, part: ChoicePart) -> ChatChunkChoice | None:
        message = self._messages[part.index]
        delta, finish_reason = message.delta(part), message.finish_reason(part)
        if not delta and finish_reason is None and not part.tokens:
            return None  # what was generated belongs to the form of a call
        choice: ChatChunkChoice = {
            "index": part.index,
            "delta": delta,
            "logprobs": self._logprobs(part),
            "finish_reason": finish_reason,
        }
        if self._output.token_ids:
            choice["token_ids"] = part.generated_ids
        if part.finish_reason is not None:
            choice["stop_reason"] = part.stop_reason
        return choice

    def _logprobs(self, part: ChoicePart) -> ChatLogprobs | None:
        count = self._output.logprobs
        return None if count is None else chat_logprobs(part.tokens, count, self._names)


async def prepare_chat(context: ServerContext, body: Mapping[str, Any]) -> Prepared:
    """Validate a chat request, render its conversation and tokenize it. Raises ApiError."""
    request = ChatCompletionRequest.parse(body)
    prepared = await prepare_conversation(context, request)
    return replace(prepared, unknown=ChatCompletionRequest.unknown_fields(body))


async def prepare_conversation(context: ServerContext, request: ChatCompletionRequest) -> Prepared:
    """Check a chat request against the model, render its conversation and tokenize it. Raises ApiError."""
    context.require_model(request.model)
    options = SamplingOptions.of(request, context.backend.model)
    options.check_choices(1, context.limits)
    await context.require_ready()  # before that the context's length may not be known
    if request.truncate_prompt_tokens is None:
        context.require_short("".join(message.text for message in request.messages), "messages")
    ids = await context.tokenize_conversation(request)
    builder = partial(ChatResponseBuilder, echoed_text=request.echoed_text, tools=request.choice.mode)
    return Prepared([ids], "messages", options, None, builder)
