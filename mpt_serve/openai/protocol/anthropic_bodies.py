"""The responses of POST /v1/messages and /v1/messages/count_tokens, the events of streams, errors, and models."""

from typing import Any, Literal, NotRequired

# pydantic makes JSON Schemas of these only, before Python 3.12.
from typing_extensions import TypedDict

__all__ = [
    "AnthropicError",
    "AnthropicErrorDetails",
    "AnthropicModel",
    "AnthropicModelList",
    "ContentBody",
    "MessageBody",
    "MessageEvent",
    "StopReason",
    "TokenCount",
    "UsageOfMessage",
]

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class TextBody(TypedDict):
    type: Literal["text"]
    text: str


class ToolUseBody(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]  # as far as it has come


ContentBody = TextBody | ToolUseBody


class UsageOfMessage(TypedDict):
    """The prompt's tokens are the sum of all but `output_tokens`."""

    input_tokens: int  # those that were not cached
    cache_creation_input_tokens: int  # always 0: caching costs nothing
    cache_read_input_tokens: int
    output_tokens: int


class MessageBody(TypedDict):
    """The body of a message."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBody]
    stop_reason: StopReason | None  # null while it begins
    stop_sequence: str | None
    usage: UsageOfMessage


class BlockDelta(TypedDict):
    type: Literal["text_delta", "input_json_delta"]
    text: NotRequired[str]
    partial_json: NotRequired[str]


class StopDelta(TypedDict):
    stop_reason: StopReason
    stop_sequence: str | None


class AnthropicErrorDetails(TypedDict):
    type: str
    message: str
    param: str | None  # as in other errors of this server
    code: str | None


class AnthropicError(TypedDict):
    """The body of every error of these endpoints, and the event that ends a stream with one."""

    type: Literal["error"]
    error: AnthropicErrorDetails
    request_id: str | None


class MessageEvent(TypedDict):
    """An event of a stream; `type` is its name and says which members it has."""

    type: Literal[
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
    ]
    message: NotRequired[MessageBody]
    index: NotRequired[int]
    content_block: NotRequired[ContentBody]
    delta: NotRequired[BlockDelta | StopDelta]
    usage: NotRequired[UsageOfMessage]
    error: NotRequired[AnthropicErrorDetails]
    request_id: NotRequired[None]


class AnthropicModel(TypedDict):
    """A model, for clients that send `anthropic-version`. Tokens are null while it loads."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str  # RFC 3339
    max_input_tokens: int | None
    max_tokens: int | None


class AnthropicModelList(TypedDict):
    data: list[AnthropicModel]
    has_more: bool
    first_id: str
    last_id: str


class TokenCount(TypedDict):
    """The body of /v1/messages/count_tokens."""

    input_tokens: int
