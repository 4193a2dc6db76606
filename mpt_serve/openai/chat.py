"""POST /v1/chat/completions: the assistant's next message."""

from collections.abc import Mapping, Sequence
from typing import Any

from mpt_serve.openai.endpoint import Prepared
from mpt_serve.openai.errors import InvalidValueError
from mpt_serve.openai.fields import Fields, Ignored, Offered, Parsed, Refused
from mpt_serve.openai.kinds import Boolean, Integer
from mpt_serve.openai.logprobs import chat_logprobs
from mpt_serve.openai.messages import CONVERSATION_FIELDS, Conversation
from mpt_serve.openai.output_choice import ChoicePart
from mpt_serve.openai.output_options import OutputOptions
from mpt_serve.openai.response_builder import ResponseBuilder
from mpt_serve.openai.sampling import SamplingOptions
from mpt_serve.openai.sampling_fields import IGNORED_FIELDS, MODEL_FIELD, REFUSED_FIELDS, SAMPLING_FIELDS
from mpt_serve.openai.server_context import ServerContext
from mpt_serve.openai.usage import Usage

__all__ = ["CHAT_FIELDS", "ChatResponseBuilder", "prepare_chat"]

TOKEN_COUNT = Integer(1, 2**31 - 1)

CHAT_FIELDS = Fields(
    MODEL_FIELD,
    *CONVERSATION_FIELDS,
    Offered(
        "max_tokens",
        TOKEN_COUNT,
        "Generated tokens at most. More than the context leaves is an error.",
        shown_default="what the context leaves",
    ),
    Offered("max_completion_tokens", TOKEN_COUNT, "The newer name of `max_tokens`; both must agree."),
    Offered("logprobs", Boolean(), "Answer with the log probabilities of the text's tokens.", False),
    Offered("top_logprobs", Integer(0, 20), "And of so many of the likeliest ones; only with `logprobs`.", 0),
    *SAMPLING_FIELDS,
    Refused("tools", 'the models have no tool format; with `"tool_choice": "none"` they are left out', ([],)),
    Refused("tool_choice", "the models have no tool format", ("none", "auto")),
    Refused("functions", "the models have no tool format", ([],)),
    Refused("function_call", "the models have no tool format", ("none", "auto")),
    Refused("best_of", "only /v1/completions chooses among answers", (1,)),
    Refused("echo", "the conversation is not repeated in the answer", (False,)),
    Refused("add_special_tokens", "chat templates write their own special tokens", (False,)),
    Refused("modalities", "the models write nothing but text", (["text"],)),
    Refused("audio", "the models write nothing but text"),
    Refused("prediction", "predicted output has no effect here"),
    Refused("web_search_options", "the server fetches nothing"),
    Refused("reasoning_effort", "the models do not reason apart from their answer", ("none",)),
    Refused("verbosity", "the models have no such control", ("medium",)),
    *REFUSED_FIELDS,
    *IGNORED_FIELDS,
    Ignored("parallel_tool_calls", Boolean(), "There are no tool calls."),
)


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


async def prepare_chat(service: ServerContext, body: Mapping[str, Any]) -> Prepared:
    """Validate a chat request, render its conversation and tokenize it. Raises ApiError."""
    if body.get("tool_choice") == "none":  # the client itself asks for an answer without tools
        body = {**body, "tools": None, "functions": None}
    parsed = CHAT_FIELDS.parse(body)
    service.require_model(parsed.values["model"])
    report = OutputOptions.from_values(parsed.values, _logprobs(parsed))
    options = SamplingOptions.from_values(parsed.values, service.backend.model, report)
    options.check_choices(1, service.limits)
    conversation = Conversation.from_values(parsed.values, parsed.given)
    await service.require_ready()  # before that the context's length may not be known
    if options.truncate_to is None:
        service.require_short("".join(message["content"] for message in conversation.messages), "messages")
    ids = await conversation.tokenize(service)
    unknown = (*parsed.unknown, *conversation.unknown)
    return Prepared([ids], "messages", options, None, ChatResponseBuilder, unknown)


def _logprobs(parsed: Parsed) -> int | None:
    top: int = parsed.values["top_logprobs"]
    if top and not parsed.values["logprobs"]:
        raise InvalidValueError("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    return top if parsed.values["logprobs"] else None
