"""POST /v1/chat/completions: the assistant's next message."""

from collections.abc import Mapping, Sequence
from typing import Any

from mpt_serve.openai.answer import Answer
from mpt_serve.openai.choice import ChoicePart
from mpt_serve.openai.fields import Fields, Ignored, Refused
from mpt_serve.openai.generate import Prepared
from mpt_serve.openai.kinds import Boolean
from mpt_serve.openai.messages import CONVERSATION_FIELDS, Conversation
from mpt_serve.openai.sampling import IGNORED_FIELDS, MODEL_FIELD, REFUSED_FIELDS, SAMPLING_FIELDS, SamplingOptions
from mpt_serve.openai.service import Service
from mpt_serve.openai.usage import Usage

__all__ = ["CHAT_FIELDS", "ChatAnswer", "prepare_chat"]

CHAT_FIELDS = Fields(
    MODEL_FIELD,
    *CONVERSATION_FIELDS,
    *SAMPLING_FIELDS,
    Refused("tools", 'the models have no tool format; with `"tool_choice": "none"` they are left out', ([],)),
    Refused("tool_choice", "the models have no tool format", ("none", "auto")),
    Refused("functions", "the models have no tool format", ([],)),
    Refused("function_call", "the models have no tool format", ("none", "auto")),
    Refused("logprobs", "log probabilities are not returned yet", (False,)),
    Refused("echo", "the prompt is not repeated in the text", (False,)),
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


class ChatAnswer(Answer):
    id_prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def whole_choice(self, part: ChoicePart) -> dict[str, Any]:
        message = {"role": "assistant", "content": part.text, "refusal": None}
        choice = {"index": part.index, "message": message, "logprobs": None, "finish_reason": part.finish_reason}
        return {**choice, "stop_reason": part.stop_reason}

    def whole(self, parts: Sequence[ChoicePart], usage: Usage) -> dict[str, Any]:
        return {**super().whole(parts, usage), "prompt_logprobs": None}

    def opening_choices(self, choices: int) -> Sequence[dict[str, Any]]:
        return [_chunk_choice(index, {"role": "assistant", "content": ""}) for index in range(choices)]

    def chunk_choice(self, part: ChoicePart) -> dict[str, Any]:
        choice = _chunk_choice(part.index, {"content": part.text} if part.text else {}, part.finish_reason)
        return choice if part.finish_reason is None else {**choice, "stop_reason": part.stop_reason}


def _chunk_choice(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


async def prepare_chat(service: Service, body: Mapping[str, Any]) -> Prepared:
    """Validate a chat request, render its conversation and tokenize it. Raises ApiError."""
    if body.get("tool_choice") == "none":  # the client itself asks for an answer without tools
        body = {**body, "tools": None, "functions": None}
    parsed = CHAT_FIELDS.parse(body)
    service.require_model(parsed.values["model"])
    options = SamplingOptions.from_values(parsed.values, service.backend.model)
    conversation = Conversation.from_values(parsed.values, parsed.given)
    await service.require_ready()  # before that the context's length may not be known
    if options.truncate_to is None:
        service.require_short("".join(message["content"] for message in conversation.messages), "messages")
    ids = await conversation.tokenize(service)
    unknown = (*parsed.unknown, *conversation.unknown)
    return Prepared([ids], "messages", options, None, ChatAnswer(service.backend.model.id), unknown)
