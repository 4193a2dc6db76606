"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API, answered by chat."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import JSONResponse

from mpt_serve.openai.chat import prepare_conversation
from mpt_serve.openai.endpoint import Prepared
from mpt_serve.openai.error_forms import anthropic_error
from mpt_serve.openai.errors import ApiError
from mpt_serve.openai.output_choice import ChoicePart
from mpt_serve.openai.protocol.anthropic_bodies import (
    AnthropicError,
    ContentBody,
    MessageBody,
    MessageEvent,
    StopReason,
    TokenCount,
    UsageOfMessage,
)
from mpt_serve.openai.protocol.anthropic_request import CountTokensRequest, MessagesRequest
from mpt_serve.openai.protocol.responses import ChatFinishReason, ToolCallDelta
from mpt_serve.openai.response_builder import ResponseBasis, ResponseBuilder
from mpt_serve.openai.server_context import ServerContext
from mpt_serve.openai.sse import StreamForm, event
from mpt_serve.openai.tool_messages import new_message
from mpt_serve.openai.usage import Usage

__all__ = ["MessagesBuilder", "count_tokens", "prepare_message"]

_PING: MessageEvent = {"type": "ping"}
_STOP_REASONS: Mapping[ChatFinishReason, StopReason] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
}


class MessagesBuilder(ResponseBuilder):
    """Builds a message. calls: whether it may use tools."""

    id_prefix = "msg"
    form = StreamForm(named=True, keep_alive=event(_PING, "ping"), end=b"")

    def __init__(self, basis: ResponseBasis, *, calls: bool) -> None:
        super().__init__(basis)
        self._calls = calls
        self._message = new_message(calls)
        self._blocks = 0  # begun so far; the last of them is open until the end
        self._stop: tuple[StopReason, str | None] | None = None

    @property
    def plain(self) -> bool:
        return not self._calls

    def whole(self, parts: Sequence[ChoicePart], usage: Usage) -> MessageBody:
        """Return the message without streaming."""
        (part,) = parts
        message = self._message.whole(part)
        calls = message.get("tool_calls", ())
        content: list[ContentBody] = []
        if message["content"] or not calls:
            content.append({"type": "text", "text": message["content"] or ""})
        for call in calls:
            name, arguments = call["function"]["name"], _object(call["function"]["arguments"])
            content.append({"type": "tool_use", "id": call["id"], "name": name, "input": arguments})
        self._end(part)
        return self._body(content, usage)

    def opening(self, usage: Usage) -> Sequence[MessageEvent]:
        """Return the events that a stream begins with: the message, and its text if it has nothing else."""
        start: MessageEvent = {"type": "message_start", "message": self._body([], usage)}
        return [start, *([] if self._calls else [self._begin({"type": "text", "text": ""})]), _PING]

    def chunks(self, part: ChoicePart) -> Sequence[MessageEvent]:
        """Return the events of a piece."""
        return list(self._read(part))

    def closing(self, usage: Usage) -> Sequence[MessageEvent]:
        """Return the events with the reason of the end, and the usage."""
        assert self._stop is not None
        reason, sequence = self._stop
        return [
            {
                "type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": sequence},
                "usage": _usage(usage),
            },
            {"type": "message_stop"},
        ]

    def failure(self, error: ApiError) -> AnthropicError:
        """Return the event that ends a stream with an error."""
        return anthropic_error(error)

    def _read(self, part: ChoicePart) -> Iterator[MessageEvent]:
        delta = self._message.delta(part)
        content, calls = delta.get("content"), delta.get("tool_calls", ())
        ended = part.finish_reason is not None
        if not self._blocks and (content or (ended and not calls)):
            yield self._begin({"type": "text", "text": ""})
        if content:
            yield self._grow({"type": "text_delta", "text": content})
        for call in calls:
            yield from self._call(call)
        if ended:
            self._end(part)
            yield self._close()

    def _call(self, call: ToolCallDelta) -> Iterator[MessageEvent]:
        function = call["function"]
        if "name" in function:
            if self._blocks:
                yield self._close()
            yield self._begin({"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}})
        if function["arguments"]:
            yield self._grow({"type": "input_json_delta", "partial_json": function["arguments"]})

    def _begin(self, block: ContentBody) -> MessageEvent:
        self._blocks += 1
        return {"type": "content_block_start", "index": self._blocks - 1, "content_block": block}

    def _grow(self, delta: Any) -> MessageEvent:
        return {"type": "content_block_delta", "index": self._blocks - 1, "delta": delta}

    def _close(self) -> MessageEvent:
        return {"type": "content_block_stop", "index": self._blocks - 1}

    def _end(self, part: ChoicePart) -> None:
        finish_reason = self._message.finish_reason(part)
        assert finish_reason is not None
        if finish_reason == "stop" and isinstance(part.stop_reason, str):
            self._stop = "stop_sequence", part.stop_reason
        else:
            self._stop = _STOP_REASONS[finish_reason], None

    def _body(self, content: list[ContentBody], usage: Usage) -> MessageBody:
        reason, sequence = self._stop or (None, None)
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model_id,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": _usage(usage),
        }


def _object(arguments: str) -> dict[str, Any]:
    """Return a call's arguments; of those that are cut off, what is complete."""
    value: dict[str, Any] = from_json(arguments or "{}", allow_partial=True)
    return value


def _usage(usage: Usage) -> UsageOfMessage:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


async def prepare_message(context: ServerContext, body: Mapping[str, Any]) -> Prepared:
    """Validate a request, render its conversation as chat does and tokenize it. Raises ApiError."""
    request = MessagesRequest.parse(body)
    unknown = MessagesRequest.unknown_fields(body)
    with request.names.in_errors():
        prepared = await prepare_conversation(context, request.chat)
    builder = partial(MessagesBuilder, calls=request.chat.choice.mode != "none")
    return replace(prepared, builder=builder, unknown=unknown, names=request.names)


def count_tokens(context: ServerContext) -> Callable[[Request], Awaitable[JSONResponse]]:
    """Return the endpoint that counts the tokens of a conversation."""

    async def endpoint(request: Request) -> JSONResponse:
        with context.text_requests.enter():
            body = await context.bodies.read_json_object(request)
            conversation = CountTokensRequest.parse(body)
            headers = context.ignored_fields_header(CountTokensRequest.unknown_fields(body))
            del body
            context.require_model(conversation.model)
            with conversation.names.in_errors():
                chat = conversation.chat
                await context.require_ready()
                ids = await context.tokenize_conversation(chat)
        count: TokenCount = {"input_tokens": len(ids)}
        return JSONResponse(count, headers=headers)

    return endpoint
