"""POST /v1/chat/completions: the assistant's next message."""

from collections.abc import Mapping, Sequence
from typing import Any

from mpt_serve.openai.conversation import tokenize_conversation
from mpt_serve.openai.endpoint import Prepared
from mpt_serve.openai.logprobs import chat_logprobs
from mpt_serve.openai.output_choice import ChoicePart
from mpt_serve.openai.protocol.chat import ChatCompletionRequest
from mpt_serve.openai.response_builder import ResponseBuilder
from mpt_serve.openai.sampling import SamplingOptions
from mpt_serve.openai.server_context import ServerContext
from mpt_serve.openai.usage import Usage

__all__ = ["ChatResponseBuilder", "prepare_chat"]


class ChatResponseBuilder(ResponseBuilder):
    id_prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def whole_choice(self, part: ChoicePart) -> dict[str, Any]:
        message = {"role": "assistant", "content": part.text, "refusal": None}
        choice = {"index": part.index, "message": message, "logprobs": self._logprobs(part)}
        ending = {"finish_reason": part.finish_reason, "stop_reason": part.stop_reason}
        return {**choice, **ending, **self._token_ids(part)}

    def whole(self, parts: Sequence[ChoicePart], usage: Usage) -> dict[str, Any]:
        return {**super().whole(parts, usage), **self._prompt_logprobs(parts[0]), **self._prompt_ids(0)}

    def opening(self) -> Sequence[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        choices = [{"index": i, "delta": delta, "logprobs": None, "finish_reason": None} for i in range(self._choices)]
        first, *others = [self.chunk([choice]) for choice in choices]
        return [{**first, **self._prompt_ids(0)}, *others]

    def chunk_choice(self, part: ChoicePart) -> dict[str, Any]:
        delta = {"content": part.text} if part.text else {}
        choice = {"index": part.index, "delta": delta, "logprobs": self._logprobs(part)}
        choice |= {"finish_reason": part.finish_reason, **self._token_ids(part)}
        return choice if part.finish_reason is None else {**choice, "stop_reason": part.stop_reason}

    def _logprobs(self, part: ChoicePart) -> dict[str, Any] | None:
        count = self._output.logprobs
        return None if count is None else chat_logprobs(part.tokens, count, self._names)


async def prepare_chat(context: ServerContext, body: Mapping[str, Any]) -> Prepared:
    """Validate a chat request, render its conversation and tokenize it. Raises ApiError."""
    request = ChatCompletionRequest.parse(body)
    context.require_model(request.model)
    options = SamplingOptions.of(request, context.backend.model)
    options.check_choices(1, context.limits)
    await context.require_ready()  # before that the context's length may not be known
    if request.truncate_prompt_tokens is None:
        context.require_short("".join(message.content for message in request.messages), "messages")
    ids = await tokenize_conversation(context, request)
    unknown = ChatCompletionRequest.unknown_fields(body)
    return Prepared([ids], "messages", options, None, ChatResponseBuilder, unknown)
