"""What requests of POST /v1/messages are made of: messages of blocks, tools, and the choice among them."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, PlainValidator, model_validator

from mpt_serve.openai.protocol.compatibility import IGNORED
from mpt_serve.openai.protocol.contents import MAX_PARTS, ContentForm
from mpt_serve.openai.protocol.field_types import Text, encodable
from mpt_serve.openai.protocol.request_model import RequestModel
from mpt_serve.openai.protocol.schema_words import Accepts
from mpt_serve.openai.protocol.tools import MAX_TOOLS, FunctionName, Parameters
from mpt_serve.openai.protocol.validation_errors import invalid
from mpt_serve.openai.protocol.variants import check_members, one_of

__all__ = ["AnthropicMessage", "AnthropicTool", "AnthropicToolChoice", "AnthropicTools", "ContentBlock", "TextBlocks"]

_TEXT_WORDS = 'a string or an array of blocks {"type": "text", "text": "..."}'
_CONTENT_WORDS = f"a string or an array of 1 to {MAX_PARTS} blocks"
_BLOCK_TYPES = '"text", "tool_use" or "tool_result": the models read nothing but text'
_TOOL_TYPE = '"custom": the server runs no tools itself, such as web_search, code_execution or bash'
_REQUIRED = {"text": ("text",), "tool_use": ("id", "name", "input"), "tool_result": ("tool_use_id",)}
_OPTIONAL = {"tool_result": ("content",)}
_ROLES = {"tool_use": "assistant", "tool_result": "user"}
_CHOICE_WORDS = '`{"type": "auto"}`, `{"type": "any"}`, `{"type": "tool", "name": "..."}` or `{"type": "none"}`'

CacheControl = Annotated[
    dict[str, Any] | None, Field(description="Prompts are cached by their tokens.", json_schema_extra=IGNORED)
]
Citations = Annotated[tuple[dict[str, Any], ...], Field(max_length=1024, strict=False, fail_fast=True)]
CallId = Annotated[str, Field(min_length=1, max_length=256)]


class TextBlock(BaseModel):
    """A block of text."""

    type: Literal["text"]
    text: str


TextBlocks = Annotated[
    str,
    PlainValidator(
        ContentForm(_TEXT_WORDS, {"text": "text"}),
        json_schema_input_type=str | Annotated[list[TextBlock], Field(min_length=1, max_length=MAX_PARTS)],
    ),
    Accepts(_TEXT_WORDS),
]


def _encodable_object(value: dict[str, Any]) -> dict[str, Any]:
    encodable(json.dumps(value, ensure_ascii=False))
    return value


class ContentBlock(RequestModel):
    """One block of a message's content."""

    type: Annotated[Literal["text", "tool_use", "tool_result"], one_of(*_REQUIRED, otherwise=_BLOCK_TYPES)] = Field(
        description="`text`, `tool_use` (a call of the assistant's) or `tool_result`, the user's."
    )
    text: Text | None = Field(None, description="Of a text.")
    id: CallId | None = Field(None, description="Of a call.")
    name: FunctionName | None = Field(None, description="Of a call: the tool's name.")
    input: Annotated[dict[str, Any], AfterValidator(_encodable_object)] | None = Field(
        None, description="Of a call: its arguments."
    )
    tool_use_id: CallId | None = Field(None, description="Of a result: the id of the call, in an earlier message.")
    content: TextBlocks | None = Field(None, description="Of a result: its text.")
    is_error: bool | None = Field(None, description="The text of the result says it.", json_schema_extra=IGNORED)
    cache_control: CacheControl = None
    citations: Citations | None = Field(None, description="Part of earlier responses.", json_schema_extra=IGNORED)

    @model_validator(mode="after")
    def _check_members(self) -> Self:
        check_members(self, "blocks", _REQUIRED, _OPTIONAL)
        return self


def _as_blocks(value: Any) -> Any:
    """Return the blocks of a content; a string is one of text."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


_Blocks = Annotated[tuple[ContentBlock, ...], Field(min_length=1, max_length=MAX_PARTS, strict=False, fail_fast=True)]


class AnthropicMessage(RequestModel):
    """One message of a conversation."""

    role: Literal["user", "assistant"] = Field(description="Who says it.")
    content: Annotated[
        _Blocks, BeforeValidator(_as_blocks, json_schema_input_type=str | _Blocks), Accepts(_CONTENT_WORDS)
    ] = Field(description="Its text, or its blocks; see below.")

    @model_validator(mode="after")
    def _check_roles(self) -> Self:
        for i, block in enumerate(self.content):
            if self.role != _ROLES.get(block.type, self.role):
                raise invalid(f"belongs to messages of the role {_ROLES[block.type]}", f"content[{i}]")
        return self


class AnthropicTool(RequestModel):
    """A tool, of the one type that is offered."""

    type: Annotated[Literal["custom"], one_of("custom", otherwise=_TOOL_TYPE)] = Field(
        "custom", description="The type of tool."
    )
    name: FunctionName = Field(description="What the model calls it; different for each tool.")
    description: Text | None = Field(None, description="What it does, for the model.")
    input_schema: Parameters = Field(description="The schema of its arguments, which are always valid under it.")
    strict: bool | None = Field(None, description="Schemas are always strict.", json_schema_extra=IGNORED)
    cache_control: CacheControl = None

    @property
    def of_chat(self) -> dict[str, Any]:
        """The tool as chat has it."""
        members = {"name": self.name, "description": self.description, "parameters": self.input_schema}
        return {"type": "function", "function": members}


AnthropicTools = Annotated[tuple[AnthropicTool, ...], Field(max_length=MAX_TOOLS, strict=False, fail_fast=True)]


class ToolChoiceObject(RequestModel):
    """Whether tools are called."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if self.type == "tool" and self.name is None:
            raise invalid("is required where the type is tool: the name of one of the tools", "name")
        if self.type != "tool" and self.name is not None:
            raise invalid("belongs to the type tool, and to no other", "name")
        return self

    @property
    def of_chat(self) -> Any:
        """The choice as chat has it."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return "required" if self.type == "any" else self.type


AnthropicToolChoice = Annotated[ToolChoiceObject, Accepts(_CHOICE_WORDS)]
