"""Tools as requests carry them: definitions, the choice among them, and calls in earlier messages."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator

from mpt_serve.openai.protocol.compatibility import IGNORED
from mpt_serve.openai.protocol.field_types import Text, encodable
from mpt_serve.openai.protocol.request_model import RequestModel
from mpt_serve.openai.protocol.schema_words import Accepts, json_type
from mpt_serve.openai.protocol.validation_errors import invalid, unsupported

__all__ = [
    "CalledFunction",
    "FunctionDefinition",
    "FunctionTool",
    "RequestToolCall",
    "ToolChoice",
    "ToolChoiceField",
    "Tools",
    "unknown_in_tools",
]

MAX_TOOLS = 128
MAX_TOOLS_CHARS = 262_144

_NAME_WORDS = "a name of 1 to 64 characters from a-z, A-Z, 0-9, `_`, `.` and `-`"

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$"), Accepts(_NAME_WORDS)]


def _parameters(value: Any) -> dict[str, Any]:
    """Return the schema of a function's arguments, which are an object whatever it says."""
    if not isinstance(value, dict):
        raise invalid(f"must be a JSON Schema of an object; got {json_type(value)}")
    kind = value.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise invalid('must be "object": arguments have names', "type")
    encodable(json.dumps(value, ensure_ascii=False))
    return {**value, "type": "object"}


Parameters = Annotated[
    dict[str, Any],
    PlainValidator(_parameters, json_schema_input_type=dict[str, Any]),
    Accepts("a JSON Schema of an object"),
]


class FunctionDefinition(RequestModel):
    """The function of a tool."""

    name: FunctionName = Field(description="What the model calls it; different for each tool.")
    description: Text | None = Field(None, description="What it does, for the model.")
    parameters: Parameters | None = Field(
        None, description="The schema of its arguments; without it there are none. Arguments are always valid under it."
    )
    strict: bool | None = Field(None, description="Schemas are always strict.", json_schema_extra=IGNORED)


class FunctionTool(RequestModel):
    """A tool, of the one type that is offered."""

    type: Literal["function"] = Field(description="The type of tool.")
    function: FunctionDefinition = Field(description="The function; see below.")

    @property
    def definition(self) -> dict[str, Any]:
        """The tool as chat templates write it."""
        function: dict[str, Any] = {"name": self.function.name}
        if self.function.description is not None:
            function["description"] = self.function.description
        return {"type": "function", "function": {**function, "parameters": self.schema_of_arguments}}

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """The schema of the function's arguments; without parameters, of an empty object."""
        if self.function.parameters is not None:
            return self.function.parameters
        return {"type": "object", "properties": {}, "additionalProperties": False}


def _distinct(tools: tuple[FunctionTool, ...]) -> tuple[FunctionTool, ...]:
    seen: set[str] = set()
    for i, tool in enumerate(tools):
        if tool.function.name in seen:
            raise invalid("is the name of an earlier tool; each needs its own", f"[{i}].function.name")
        seen.add(tool.function.name)
    chars = sum(len(json.dumps(tool.definition, ensure_ascii=False)) for tool in tools)
    if chars > MAX_TOOLS_CHARS:
        raise invalid(f"must have at most {MAX_TOOLS_CHARS} characters of JSON; got {chars}")
    return tools


Tools = Annotated[
    tuple[FunctionTool, ...], Field(max_length=MAX_TOOLS, strict=False, fail_fast=True), AfterValidator(_distinct)
]


@dataclass(frozen=True)
class ToolChoice:
    """Whether tools are called.

    names: the functions that may be called, each with the path of its name in `tool_choice`; None for all. single: one
    call, of the one function that the request names.
    """

    mode: Literal["none", "auto", "required"]
    names: Mapping[str, str] | None = None
    single: bool = False


_NAMED_WORDS = '`{"type": "function", "function": {"name": "..."}}`'
_CHOICE_WORDS = (
    f'"none", "auto", "required", {_NAMED_WORDS} or `{{"type": "allowed_tools", "allowed_tools": {{"mode": "auto" or'
    ' "required", "tools": [...]}}`'
)


def _tool_choice(value: Any) -> ToolChoice:
    if value in ("none", "auto", "required"):
        return ToolChoice(value)
    if not isinstance(value, dict):
        raise invalid(
            f"must be {_CHOICE_WORDS}; got {json_type(value) if not isinstance(value, str) else 'another string'}"
        )
    if value.get("type") == "function":
        return ToolChoice("required", {_named(value, ""): "function.name"}, single=True)
    if value.get("type") == "allowed_tools":
        return _allowed_tools(value.get("allowed_tools"))
    raise unsupported('must be "function" or "allowed_tools"', "type")


def _allowed_tools(value: Any) -> ToolChoice:
    place = "allowed_tools"
    if not isinstance(value, dict):
        raise invalid(f"must be an object with `mode` and `tools`; got {json_type(value)}", place)
    mode, tools = value.get("mode"), value.get("tools")
    if mode != "auto" and mode != "required":
        raise invalid('must be "auto" or "required"', f"{place}.mode")
    if not isinstance(tools, list) or not 0 < len(tools) <= MAX_TOOLS:
        raise invalid(f"must be an array of 1 to {MAX_TOOLS} items, each {_NAMED_WORDS}", f"{place}.tools")
    places = {f"{place}.tools[{i}]": tool for i, tool in enumerate(tools)}
    return ToolChoice(mode, {_named(tool, own): f"{own}.function.name" for own, tool in places.items()})


def _named(value: Any, place: str) -> str:
    """Return the name in an object that names a function."""
    if not isinstance(value, dict) or value.get("type") != "function":
        raise invalid(f"must be {_NAMED_WORDS}", place)
    function = value.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise invalid(f"must be a string; got {json_type(name)}", f"{place}.function.name".lstrip("."))
    return name


ToolChoiceField = Annotated[
    ToolChoice, PlainValidator(_tool_choice, json_schema_input_type=str | dict[str, Any]), Accepts(_CHOICE_WORDS)
]


class CalledFunction(RequestModel):
    """The function of an earlier call."""

    name: FunctionName = Field(description="The function's name.")
    arguments: Text = Field(description="Its arguments, as the JSON text that the call had.")


class RequestToolCall(RequestModel):
    """A call in an earlier message of the assistant's."""

    id: Annotated[str, Field(min_length=1, max_length=256)] = Field(description="The call's id.")
    type: Literal["function"] = Field(description="The type of tool.")
    function: CalledFunction = Field(description="What was called.")


def unknown_in_tools(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the paths of unknown members of definitions."""
    unknown: list[str] = []
    for i, tool in enumerate(tools):
        unknown += FunctionTool.unknown_fields(tool, f"tools[{i}].")
        unknown += FunctionDefinition.unknown_fields(tool["function"], f"tools[{i}].function.")
    return unknown
