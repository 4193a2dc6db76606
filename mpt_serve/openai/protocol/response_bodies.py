"""The response of POST /v1/responses, and the events of its streams."""

from typing import Any, Literal, NotRequired

# pydantic makes JSON Schemas of these only, before Python 3.12.
from typing_extensions import TypedDict

from mpt_serve.openai.protocol.responses import ChatTokenLogprob

__all__ = ["FunctionCallItem", "MessageItem", "OutputItem", "OutputText", "ResponseBody", "ResponseEvent"]

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(TypedDict):
    type: Literal["output_text"]
    text: str
    annotations: list[dict[str, Any]]  # always empty
    logprobs: list[ChatTokenLogprob]  # empty unless requested


class MessageItem(TypedDict):
    id: str
    type: Literal["message"]
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputText]  # one, or none while it begins


class FunctionCallItem(TypedDict):
    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    name: str
    arguments: str  # JSON


OutputItem = MessageItem | FunctionCallItem


class InputTokensDetails(TypedDict):
    cached_tokens: int
    cache_write_tokens: int  # always 0: caching costs nothing


class OutputTokensDetails(TypedDict):
    reasoning_tokens: int  # always 0


class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseErrorBody(TypedDict):
    code: str
    message: str


class IncompleteDetails(TypedDict):
    reason: Literal["max_output_tokens"]


class ResponseBody(TypedDict):
    """The body of a response. The fields of the request come back with it."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseErrorBody | None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None  # null until the response is complete
    background: bool
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]


class ResponseEvent(TypedDict):
    """An event of a stream; `type` is its name and says which members it has."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    sequence_number: int  # from 0
    response: NotRequired[ResponseBody]
    output_index: NotRequired[int]
    item: NotRequired[OutputItem]
    item_id: NotRequired[str]
    content_index: NotRequired[int]
    part: NotRequired[OutputText]
    delta: NotRequired[str]
    text: NotRequired[str]
    name: NotRequired[str]
    arguments: NotRequired[str]
    logprobs: NotRequired[list[ChatTokenLogprob]]
