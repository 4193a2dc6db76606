"""What requests of POST /v1/responses are made of: items of the conversation, tools, and the choice among them."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, model_validator

from mpt_serve.openai.protocol.compatibility import IGNORED
from mpt_serve.openai.protocol.contents import MAX_PARTS, ContentForm
from mpt_serve.openai.protocol.field_types import Text
from mpt_serve.openai.protocol.request_model import Refused, RequestModel
from mpt_serve.openai.protocol.schema_words import Accepts, json_type
from mpt_serve.openai.protocol.tools import MAX_TOOLS, FunctionName, Parameters
from mpt_serve.openai.protocol.validation_errors import invalid, unsupported
from mpt_serve.openai.protocol.variants import check_members, one_of

__all__ = ["InputItem", "InputItems", "ResponseTool", "ResponseToolChoice", "ResponseTools"]

MAX_ITEMS = 4096

_CONTENT_WORDS = 'a string or an array of parts {"type": "input_text", "text": "..."}'
_ITEM_TYPES = '"message", "function_call" or "function_call_output": the server stores no items and runs no tools'
_NO_BUILT_IN = "the server runs no tools itself, such as web_search, file_search, code_interpreter or mcp"
_NAMED_WORDS = '`{"type": "function", "name": "..."}`'
_CHOICE_WORDS = (
    f'"none", "auto", "required", {_NAMED_WORDS} or `{{"type": "allowed_tools", "mode": "auto" or "required", "tools":'
    " [...]}`"
)
_INPUT_WORDS = f"a non-empty string, or an array of 1 to {MAX_ITEMS} items"
# By the type of an item, the members that it must have.
_MEMBERS = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
}


class ItemPart(BaseModel):
    """A part of a message's content, or of a call's output."""

    type: Literal["input_text", "output_text"]
    text: str


class ItemRefusal(BaseModel):
    """A part of an earlier response with which a model has refused."""

    type: Literal["refusal"]
    refusal: str


ItemContent = Annotated[
    str,
    PlainValidator(
        ContentForm(_CONTENT_WORDS, {"input_text": "text", "output_text": "text", "refusal": "refusal"}),
        json_schema_input_type=str | Annotated[list[ItemPart | ItemRefusal], Field(min_length=1, max_length=MAX_PARTS)],
    ),
    Accepts(_CONTENT_WORDS),
]
ItemType = Annotated[
    Literal["message", "function_call", "function_call_output"], one_of(*_MEMBERS, otherwise=_ITEM_TYPES)
]
CallId = Annotated[str, Field(min_length=1, max_length=256)]


class InputItem(RequestModel):
    """One item of a conversation."""

    type: ItemType = Field("message", description="`message`, a `function_call` of the assistant's, or its result.")
    role: Literal["system", "developer", "user", "assistant"] | None = Field(
        None, description="Of a message; `developer` means `system`."
    )
    content: ItemContent | None = Field(None, description="The text of a message.")
    call_id: CallId | None = Field(None, description="Of a call, and of its result.")
    name: FunctionName | None = Field(None, description="Of a call: the function's name.")
    arguments: Text | None = Field(None, description="Of a call: its arguments, as the JSON text that it had.")
    output: ItemContent | None = Field(None, description="Of a result: its text.")
    id: str | None = Field(None, max_length=256, description="Part of earlier responses.", json_schema_extra=IGNORED)
    status: str | None = Field(None, max_length=64, description="Part of earlier responses.", json_schema_extra=IGNORED)

    @model_validator(mode="after")
    def _check_members(self) -> Self:
        check_members(self, "items", _MEMBERS)
        return self


def _as_items(value: Any) -> Any:
    """Return the items of an input; a string is the user's message."""
    if isinstance(value, str):
        if not value:
            raise invalid(f"must be {_INPUT_WORDS}; got an empty string")
        return [{"role": "user", "content": value}]
    return value


_Items = Annotated[tuple[InputItem, ...], Field(min_length=1, max_length=MAX_ITEMS, strict=False, fail_fast=True)]
InputItems = Annotated[
    _Items,
    BeforeValidator(_as_items, json_schema_input_type=Annotated[str, Field(min_length=1)] | _Items),
    Accepts(_INPUT_WORDS),
]


class ResponseTool(RequestModel):
    """A tool, of the one type that is offered."""

    type: Annotated[Literal["function"], one_of("function", otherwise=f'"function": {_NO_BUILT_IN}')] = Field(
        description="The type of tool."
    )
    name: FunctionName = Field(description="What the model calls it; different for each tool.")
    description: Text | None = Field(None, description="What it does, for the model.")
    parameters: Parameters | None = Field(
        None, description="The schema of its arguments; without it there are none. Arguments are always valid under it."
    )
    strict: bool | None = Field(None, description="Schemas are always strict.", json_schema_extra=IGNORED)

    refused: ClassVar[tuple[Refused, ...]] = (
        Refused("function", "the function's members belong to the tool itself in this API"),
    )

    @property
    def of_chat(self) -> dict[str, Any]:
        """The tool as chat has it."""
        members = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": members}

    @property
    def echo(self) -> dict[str, Any]:
        """The tool as the response says it."""
        return {"type": "function", **self.of_chat["function"], "strict": True}


ResponseTools = Annotated[tuple[ResponseTool, ...], Field(max_length=MAX_TOOLS, strict=False, fail_fast=True)]


def _tool_choice(value: Any) -> str | dict[str, Any]:
    """Return the choice, of an object the members that count."""
    if value in ("none", "auto", "required"):
        return str(value)
    if not isinstance(value, dict):
        raise invalid(
            f"must be {_CHOICE_WORDS}; got {'another string' if isinstance(value, str) else json_type(value)}"
        )
    if value.get("type") == "function":
        return _named(value, "")
    if value.get("type") != "allowed_tools":
        raise unsupported(f'must be "function" or "allowed_tools": {_NO_BUILT_IN}', "type")
    mode, tools = value.get("mode"), value.get("tools")
    if mode != "auto" and mode != "required":
        raise invalid('must be "auto" or "required"', "mode")
    if not isinstance(tools, list) or not 0 < len(tools) <= MAX_TOOLS:
        raise invalid(f"must be an array of 1 to {MAX_TOOLS} items, each {_NAMED_WORDS}", "tools")
    named = [_named(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
    return {"type": "allowed_tools", "mode": mode, "tools": named}


def _named(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.get("type") != "function":
        raise invalid(f"must be {_NAMED_WORDS}", place)
    name = value.get("name")
    if not isinstance(name, str):
        raise invalid(f"must be a string; got {json_type(name)}", f"{place}.name".lstrip("."))
    return {"type": "function", "name": name}


ResponseToolChoice = Annotated[
    str | dict[str, Any],
    PlainValidator(_tool_choice, json_schema_input_type=str | dict[str, Any]),
    Accepts(_CHOICE_WORDS),
]
