"""The requests of POST /v1/messages and /v1/messages/count_tokens."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from mpt_serve.openai.protocol.adapted import AdaptedRequest, Turn, refused_grammars
from mpt_serve.openai.protocol.anthropic_blocks import (
    AnthropicMessage,
    AnthropicTool,
    AnthropicToolChoice,
    AnthropicTools,
    ContentBlock,
    TextBlocks,
)
from mpt_serve.openai.protocol.compatibility import IGNORED, NO_NAMED_LOGPROBS
from mpt_serve.openai.protocol.field_names import FieldNames
from mpt_serve.openai.protocol.field_types import MAX_INT32, ModelId, shown_default
from mpt_serve.openai.protocol.generation import GenerationFields, StopStrings
from mpt_serve.openai.protocol.request_model import Refused, RequestModel
from mpt_serve.openai.protocol.schema_words import Accepts
from mpt_serve.openai.protocol.structured_outputs import JsonSchema
from mpt_serve.openai.protocol.validation_errors import invalid

__all__ = ["CountTokensRequest", "MessagesRequest", "OutputConfig"]

_FORMAT_WORDS = '`{"type": "json_schema", "schema": {...}}`'


class OutputFormat(RequestModel):
    """The form of a message's text."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["json_schema"]
    json_schema: JsonSchema = Field(alias="schema")


class OutputConfig(RequestModel):
    """What `output_config` says."""

    format: Annotated[OutputFormat, Accepts(_FORMAT_WORDS)] | None = Field(
        None, description="The text is JSON that is valid under the schema."
    )

    refused: ClassVar[tuple[Refused, ...]] = (Refused("effort", "the models have no such control"),)


class AnthropicRequest(AdaptedRequest):
    """The fields of both requests."""

    model: ModelId = None
    system: TextBlocks | None = Field(None, description="A system message before the others.")
    messages: Annotated[tuple[AnthropicMessage, ...], Field(strict=False, fail_fast=True)] = Field(
        min_length=1,
        max_length=4096,
        description="The conversation, oldest first; see below. If the last message is the assistant's text, the"
        " response continues it.",
    )
    tools: AnthropicTools = Field((), description="Tools that the model may call; see below.")
    tool_choice: AnthropicToolChoice | None = Field(
        None,
        description="Whether the model calls tools: as it likes, at least one, exactly one of a tool, or never; with"
        " `disable_parallel_tool_use` one at most.",
        json_schema_extra=shown_default("`auto` with `tools`, `none` without"),
    )
    output_config: OutputConfig | None = Field(None, description="An object with the `format` of the text.")
    cache_control: dict[str, Any] | None = Field(
        None, description="Prompts are cached by their tokens.", json_schema_extra=IGNORED
    )

    refused: ClassVar[tuple[Refused, ...]] = (
        Refused("thinking", "the models have no separate reasoning", ({"type": "disabled"},)),
        Refused("output_format", "use `output_config.format`"),
        Refused("mcp_servers", "the server runs no tools itself", ([],)),
        Refused("container", "the server runs no code"),
        Refused("context_management", "the server stores nothing and edits no prompts"),
    )

    @classmethod
    def unknown_fields(cls, body: Mapping[str, Any], prefix: str = "") -> Sequence[str]:
        """Return the paths of unknown members, those of messages, blocks and tools included."""
        unknown = list(super().unknown_fields(body, prefix))
        for i, message in enumerate(body["messages"]):
            unknown += AnthropicMessage.unknown_fields(message, f"messages[{i}].")
            blocks = message["content"] if isinstance(message["content"], list) else []
            for j, block in enumerate(blocks):
                unknown += ContentBlock.unknown_fields(block, f"messages[{i}].content[{j}].")
        for i, tool in enumerate(body.get("tools") or ()):
            unknown += AnthropicTool.unknown_fields(tool, f"tools[{i}].")
        return [*unknown, *OutputConfig.unknown_fields(body.get("output_config") or {}, "output_config.")]

    @cached_property
    def turns(self) -> Sequence[Turn]:
        """The conversation as chat's messages: each result is one, and so is the text between them."""
        turns: list[Turn] = []
        if self.system is not None:
            turns.append(("system", {"role": "system", "content": self.system}))
        for i, message in enumerate(self.messages):
            place = f"messages[{i}]"
            if message.role == "assistant":
                turns.append((place, _assistant(message.content)))
                continue
            texts: list[str] = []
            for j, block in enumerate(message.content):
                if block.type == "text":
                    texts.append(block.text or "")
                    continue
                turns += [(place, _user(texts))] if texts else []
                texts = []
                result = {"role": "tool", "tool_call_id": block.tool_use_id, "content": block.content or ""}
                turns.append((f"{place}.content[{j}]", result))
            turns += [(place, _user(texts))] if texts else []
        return turns

    @property
    def chat_fields(self) -> Mapping[str, Any]:
        """Those of chat's other fields that have a value."""
        own = None if self.output_config is None else self.output_config.format
        schema = None if own is None else {"type": "json_schema", "json_schema": {"schema": own.json_schema}}
        choice = self.tool_choice
        return {
            "model": self.model,
            "tools": [tool.of_chat for tool in self.tools],
            "tool_choice": None if choice is None else choice.of_chat,
            "parallel_tool_calls": choice is None or not choice.disable_parallel_tool_use,
            "response_format": schema,
            "continue_final_message": self.is_continued,
        }

    @model_validator(mode="after")
    def _check_last_message(self) -> Self:
        if self.is_continued and not self.turns[-1][1]["content"].strip():
            place = f"messages[{len(self.messages) - 1}].content"
            raise invalid("needs some text, as the response continues the assistant's last message", place)
        return self

    @property
    def is_continued(self) -> bool:
        """Whether the response continues the last message, text of the assistant's."""
        last = self.turns[-1][1]
        return last["role"] == "assistant" and "tool_calls" not in last

    @cached_property
    def names(self) -> FieldNames:
        """What errors call chat's fields."""
        return FieldNames(
            [place for place, _ in self.turns],
            {
                r"\.tool_call_id$": ".tool_use_id",
                r"^tools\[(\d+)\]\.function\.": r"tools[\1].",
                r"^tool_choice\.function\.name$": "tool_choice.name",
                r"^response_format$": "output_config.format",
            },
            {"'response_format'": "'output_config.format'"},
        )


class CountTokensRequest(AnthropicRequest):
    """The body of POST /v1/messages/count_tokens."""


class MessagesRequest(AnthropicRequest, GenerationFields):
    """The body of POST /v1/messages."""

    max_tokens: int = Field(
        ge=1,
        le=MAX_INT32,
        description="Generated tokens at most, calls included. More than the context leaves is an error.",
    )
    stop_sequences: StopStrings = Field((), description="The text ends before the first of these strings.")
    stream: bool = Field(False, description="Send the message while it is generated, as server-sent events.")
    metadata: dict[str, Any] | None = Field(None, description="Nothing is kept by user.", json_schema_extra=IGNORED)
    service_tier: str | None = Field(None, max_length=64, description="There is one tier.", json_schema_extra=IGNORED)

    refused: ClassVar[tuple[Refused, ...]] = (
        *AnthropicRequest.refused,
        Refused("n", "a response is one message", (1,)),
        *(Refused(name, "use `max_tokens`") for name in ("max_completion_tokens", "max_output_tokens")),
        *(Refused(name, "messages have no log probabilities", (False, 0)) for name in ("logprobs", "top_logprobs")),
        *refused_grammars("output_config.format"),
        NO_NAMED_LOGPROBS,
        *GenerationFields.refused,
    )

    @property
    def chat_fields(self) -> Mapping[str, Any]:
        """Those of chat's other fields that have a value."""
        own = {"max_tokens": self.max_tokens, "stream": self.stream}
        return {**super().chat_fields, **own, **({"stop": list(self.stop_sequences)} if self.stop_sequences else {})}

    @model_validator(mode="after")
    def _check_stop(self) -> Self:
        if self.stop and self.stop_sequences:
            raise invalid("and 'stop_sequences' exclude each other", "stop")
        return self


def _user(texts: Sequence[str]) -> dict[str, Any]:
    return {"role": "user", "content": "\n".join(texts)}


def _assistant(blocks: Sequence[ContentBlock]) -> dict[str, Any]:
    """Return the assistant's message with its text, then its calls."""
    texts = [block.text or "" for block in blocks if block.type == "text"]
    calls = [
        {
            "id": block.id,
            "type": "function",
            "function": {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)},
        }
        for block in blocks
        if block.type == "tool_use"
    ]
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    return {**message, "tool_calls": calls} if calls else message
