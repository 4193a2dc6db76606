"""The request of POST /v1/responses."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, PlainValidator, model_validator

from mpt_serve.openai.protocol.adapted import AdaptedRequest, Turn, refused_grammars
from mpt_serve.openai.protocol.compatibility import IGNORED, NO_NAMED_LOGPROBS, UnusedFields
from mpt_serve.openai.protocol.field_names import FieldNames
from mpt_serve.openai.protocol.field_types import (
    ALL_LOGPROBS,
    MAX_INT32,
    LogprobsCount,
    ModelId,
    Text,
    encodable,
    shown_default,
)
from mpt_serve.openai.protocol.generation import GenerationFields
from mpt_serve.openai.protocol.request_model import Refused, RequestModel
from mpt_serve.openai.protocol.response_items import (
    InputItem,
    InputItems,
    ResponseTool,
    ResponseToolChoice,
    ResponseTools,
)
from mpt_serve.openai.protocol.schema_words import Accepts, json_type
from mpt_serve.openai.protocol.structured_outputs import MAX_GRAMMAR_CHARS, JsonSchema
from mpt_serve.openai.protocol.tool_grammar import MAX_CALLS
from mpt_serve.openai.protocol.validation_errors import invalid

__all__ = ["Metadata", "ResponseRequest", "TextFormat", "TextOptions"]

_STATELESS = "the server stores nothing: send the whole conversation as `input`"
_FORMAT_WORDS = (
    '`{"type": "text"}`, `{"type": "json_object"}` or `{"type": "json_schema", "name": "...", "schema": {...}}`'
)
_METADATA_WORDS = "an object of at most 16 members: names of at most 64 characters, with strings of at most 512"


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise invalid(f"must be {_METADATA_WORDS}; got {json_type(value)}")
    strings = all(isinstance(text, str) and len(name) <= 64 and len(text) <= 512 for name, text in value.items())
    if len(value) > 16 or not strings:
        raise invalid(f"must be {_METADATA_WORDS}")
    for name, text in value.items():
        encodable(name + text)
    return value


Metadata = Annotated[
    dict[str, str], PlainValidator(_metadata, json_schema_input_type=dict[str, str]), Accepts(_METADATA_WORDS)
]


class TextFormat(RequestModel):
    """The form of a response's text."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"] = Field(
        description="Any text, any JSON object, or JSON of a schema."
    )
    name: str | None = Field(None, max_length=256, description="The schema's name, for the client.")
    json_schema: JsonSchema | None = Field(
        None, alias="schema", description="Of the type json_schema, and of no other."
    )
    description: str | None = Field(None, max_length=MAX_GRAMMAR_CHARS, description="What it is, for the client.")
    strict: bool | None = Field(None, description="Schemas are always strict.", json_schema_extra=IGNORED)

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise invalid("is required where the type is json_schema", "schema")
        if self.type != "json_schema" and self.json_schema is not None:
            raise invalid("belongs to the type json_schema, and to no other", "schema")
        return self

    @property
    def of_chat(self) -> dict[str, Any]:
        """The format as chat has it."""
        if self.json_schema is None:
            return {"type": self.type}
        return {"type": self.type, "json_schema": {"name": self.name, "schema": self.json_schema}}

    @property
    def echo(self) -> dict[str, Any]:
        """The format as the response says it."""
        if self.json_schema is None:
            return {"type": self.type}
        named = {"name": self.name, "description": self.description, "strict": True}
        return {"type": self.type, **named, "schema": json.loads(self.json_schema)}


class TextOptions(RequestModel):
    """What `text` says."""

    format: Annotated[TextFormat, Accepts(_FORMAT_WORDS)] | None = Field(
        None, description="The form of the text; schemas are always strict.", json_schema_extra=shown_default("text")
    )

    refused: ClassVar[tuple[Refused, ...]] = (Refused("verbosity", "the models have no such control", ("medium",)),)


class ResponseStreamOptions(RequestModel):
    """The object of OpenAI's API."""

    include_obfuscation: bool | None = Field(None, description="Events carry no padding.", json_schema_extra=IGNORED)


Include = Annotated[
    tuple[Literal["message.output_text.logprobs", "reasoning.encrypted_content"], ...],
    Field(max_length=16, strict=False, fail_fast=True),
]


class ResponseRequest(UnusedFields, AdaptedRequest, GenerationFields):
    """The body of POST /v1/responses."""

    model: ModelId = None
    input: InputItems = Field(
        description="The user's message, or the items of a conversation, oldest first; see below."
    )
    instructions: Text | None = Field(None, description="A system message before the input.")
    max_output_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_INT32,
        description="Generated tokens at most, calls included. More than the context leaves is an error.",
        json_schema_extra=shown_default("what the context leaves"),
    )
    tools: ResponseTools = Field((), description="Functions that the model may call; see below.")
    tool_choice: ResponseToolChoice | None = Field(
        None,
        description="Whether the model calls tools: never (they are left out of the prompt), as it likes, at least one,"
        " exactly one of a function, or only some of the functions.",
        json_schema_extra=shown_default("`auto` with `tools`, `none` without"),
    )
    parallel_tool_calls: bool = Field(
        True, description=f"A response may have several calls, up to {MAX_CALLS}; `false`: one at most."
    )
    text: TextOptions | None = Field(None, description="An object with the `format` of the text; see below.")
    include: Include = Field(
        (),
        description="`message.output_text.logprobs`: the log probabilities of the text's tokens. The models have no"
        " reasoning that `reasoning.encrypted_content` could add.",
    )
    top_logprobs: LogprobsCount = Field(
        0, description=f"Log probabilities of this number of the most likely tokens, too; {ALL_LOGPROBS}."
    )
    metadata: Metadata | None = Field(None, description="Comes back with the response.")
    stream: bool = Field(False, description="Send the response while it is generated, as server-sent events.")
    stream_options: ResponseStreamOptions | None = Field(
        None, description="Has no members with an effect.", json_schema_extra=IGNORED
    )

    refused: ClassVar[tuple[Refused, ...]] = (
        Refused("store", _STATELESS, (False,)),
        Refused("previous_response_id", _STATELESS),
        Refused("conversation", _STATELESS),
        Refused("background", "the server stores nothing that could be fetched later", (False,)),
        Refused("prompt", "the server stores no prompt templates"),
        Refused("context_management", _STATELESS, ([],)),
        Refused("truncation", "use `truncate_prompt_tokens`", ("disabled",)),
        Refused("max_tool_calls", "it bounds calls of built-in tools, which are not offered"),
        Refused("reasoning", "the models have no separate reasoning", ({}, {"effort": "none"})),
        Refused("moderation", "the server judges no contents"),
        Refused("messages", "use `input`"),
        *(Refused(name, "use `max_output_tokens`") for name in ("max_tokens", "max_completion_tokens")),
        Refused("logprobs", "use `include` and `top_logprobs`", (False,)),
        Refused("n", "a response is one", (1,)),
        Refused("best_of", "a response is one", (1,)),
        *refused_grammars("text.format"),
        NO_NAMED_LOGPROBS,
        *GenerationFields.refused,
    )

    @classmethod
    def field_order(cls) -> Sequence[str]:
        """Return the API's own fields first, then those of all requests to generate, then those without effect."""
        unused = set(UnusedFields.wire_names())
        return sorted(super().field_order(), key=lambda name: name in unused)

    @classmethod
    def unknown_fields(cls, body: Mapping[str, Any], prefix: str = "") -> Sequence[str]:
        """Return the paths of unknown members, those of items, tools and options included."""
        unknown = list(super().unknown_fields(body, prefix))
        items = body["input"] if isinstance(body["input"], list) else []
        for name, members, kind in (("input", items, InputItem), ("tools", body.get("tools") or (), ResponseTool)):
            unknown += [path for i, own in enumerate(members) for path in kind.unknown_fields(own, f"{name}[{i}].")]
        unknown += TextOptions.unknown_fields(body.get("text") or {}, "text.")
        return [*unknown, *ResponseStreamOptions.unknown_fields(body.get("stream_options") or {}, "stream_options.")]

    @property
    def returns_logprobs(self) -> bool:
        """Whether the text comes with log probabilities."""
        return self.top_logprobs > 0 or "message.output_text.logprobs" in self.include

    @property
    def text_format(self) -> dict[str, Any]:
        """The form of the text as the response says it."""
        own = None if self.text is None else self.text.format
        return {"type": "text"} if own is None else own.echo

    @cached_property
    def turns(self) -> Sequence[Turn]:
        """The conversation as chat's messages; text of the assistant's and the calls after it are one."""
        turns: list[Turn] = []
        if self.instructions is not None:
            turns.append(("instructions", {"role": "system", "content": self.instructions}))
        for i, item in enumerate(self.input):
            place = f"input[{i}]"
            if item.type == "message":
                turns.append((place, {"role": item.role, "content": item.content}))
            elif item.type == "function_call_output":
                turns.append((place, {"role": "tool", "tool_call_id": item.call_id, "content": item.output}))
            else:
                if not turns or turns[-1][1]["role"] != "assistant":
                    turns.append((place, {"role": "assistant"}))
                function = {"name": item.name, "arguments": item.arguments}
                call = {"id": item.call_id, "type": "function", "function": function}
                turns[-1][1].setdefault("tool_calls", []).append(call)
        return turns

    @property
    def chat_fields(self) -> Mapping[str, Any]:
        """Those of chat's other fields that have a value."""
        response_format = None if self.text is None or self.text.format is None else self.text.format.of_chat
        return {
            "model": self.model,
            "max_completion_tokens": self.max_output_tokens,
            "tools": [tool.of_chat for tool in self.tools],
            "tool_choice": _choice_of_chat(self.tool_choice),
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": response_format,
            "logprobs": self.returns_logprobs,
            "top_logprobs": self.top_logprobs,
            "stream": self.stream,
        }

    @cached_property
    def names(self) -> FieldNames:
        """What errors call chat's fields."""
        return FieldNames(
            [place for place, _ in self.turns],
            {
                r"^messages\b": "input",
                r"\.tool_call_id$": ".call_id",
                r"^tools\[(\d+)\]\.function\.": r"tools[\1].",
                r"^tool_choice\.(allowed_tools\.)?": "tool_choice.",
                r"^(tool_choice.*?)\.function\.name$": r"\1.name",
                r"^response_format$": "text.format",
                r"^max_(completion_)?tokens$": "max_output_tokens",
            },
            {
                "'messages'": "'input'",
                "'response_format'": "'text.format'",
                "max_(completion_)?tokens": "max_output_tokens",
            },
        )


def _choice_of_chat(choice: str | dict[str, Any] | None) -> Any:
    if not isinstance(choice, dict):
        return choice
    if choice["type"] == "function":
        return _nested(choice)
    return {
        "type": "allowed_tools",
        "allowed_tools": {"mode": choice["mode"], "tools": [_nested(tool) for tool in choice["tools"]]},
    }


def _nested(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": tool["name"]}}
