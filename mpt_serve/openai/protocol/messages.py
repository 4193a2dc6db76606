"""Conversations as requests carry them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field, PlainValidator, model_validator

from mpt_serve.openai.protocol.compatibility import IGNORED
from mpt_serve.openai.protocol.contents import MAX_PARTS, ContentForm
from mpt_serve.openai.protocol.field_types import ModelId, Text, shown_default
from mpt_serve.openai.protocol.request_model import Refused, RequestModel
from mpt_serve.openai.protocol.schema_words import Accepts
from mpt_serve.openai.protocol.tools import RequestToolCall, Tools, unknown_in_tools
from mpt_serve.openai.protocol.validation_errors import invalid
from mpt_serve.text.chat_template import Message, ToolCall

__all__ = ["ChatMessage", "ConversationRequest"]

_CONTENT_WORDS = 'a string or an array of parts {"type": "text", "text": "..."}'


class TextPart(BaseModel):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class RefusalPart(BaseModel):
    """A part of an earlier response with which a model has refused."""

    type: Literal["refusal"]
    refusal: str


Content = Annotated[
    str,
    PlainValidator(
        ContentForm(_CONTENT_WORDS, {"text": "text", "refusal": "refusal"}),
        json_schema_input_type=str | Annotated[list[TextPart | RefusalPart], Field(min_length=1, max_length=MAX_PARTS)],
    ),
    Accepts(_CONTENT_WORDS),
]
ToolCalls = Annotated[tuple[RequestToolCall, ...], Field(max_length=128, strict=False, fail_fast=True)]
Annotations = Annotated[tuple[dict[str, Any], ...], Field(max_length=1024, strict=False, fail_fast=True)]


class ChatMessage(RequestModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="`developer` means `system`; `tool` has the result of a call."
    )
    content: Content | None = Field(
        None,
        description="The message's text; only a message with `tool_calls` needs none.",
        json_schema_extra=shown_default("required"),
    )
    tool_calls: ToolCalls = Field((), description="The assistant's calls, as an earlier response had them; see below.")
    tool_call_id: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="Of a result: the id of the call, in an earlier message."
    )
    name: str | None = Field(
        None, max_length=256, description="The chat formats have no names.", json_schema_extra=IGNORED
    )
    refusal: Text | None = Field(None, description="Part of earlier responses.", json_schema_extra=IGNORED)
    annotations: Annotations | None = Field(None, description="Part of earlier responses.", json_schema_extra=IGNORED)

    refused: ClassVar[tuple[Refused, ...]] = (
        Refused("function_call", "it is deprecated; use `tool_calls`"),
        Refused("audio", "the models read nothing but text"),
    )

    @property
    def text(self) -> str:
        """The content, empty if there is none."""
        return self.content or ""

    @model_validator(mode="after")
    def _check_role(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise invalid(f"is required: {_CONTENT_WORDS}", "content")
        if self.tool_calls and self.role != "assistant":
            raise invalid("belongs to messages of the assistant", "tool_calls")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise invalid("is required in messages of the role tool, and belongs to no other", "tool_call_id")
        return self


class ConversationRequest(RequestModel):
    """The fields of every request with a conversation."""

    model: ModelId = None
    messages: Annotated[tuple[ChatMessage, ...], Field(strict=False, fail_fast=True)] = Field(
        min_length=1, max_length=4096, description="The conversation, oldest first."
    )
    tools: Tools = Field((), description="Functions that the model may call; see below.")
    add_generation_prompt: bool = Field(True, description="End the prompt where the assistant's turn begins.")
    continue_final_message: bool = Field(
        False,
        description="Continue the last message, the assistant's, instead of beginning a turn; excludes"
        " `add_generation_prompt`.",
    )
    add_special_tokens: bool = Field(
        False,
        description="Let the tokenizer add its own special tokens to the conversation, beside those of the template.",
    )

    refused: ClassVar[tuple[Refused, ...]] = (
        Refused("chat_template", "templates come from the checkpoint or the server's setting chat_template"),
        Refused("parse_special_tokens", "the server's setting chat_special_tokens decides it for conversations"),
        Refused("chat_template_kwargs", "templates take no variables from requests", ({},)),
        Refused("documents", "the chat formats have no documents", ([],)),
    )

    @classmethod
    def unknown_fields(cls, body: Mapping[str, Any], prefix: str = "") -> Sequence[str]:
        """Return the paths of unknown members, those of the messages included."""
        messages = enumerate(body["messages"])
        unknown = [name for i, message in messages for name in ChatMessage.unknown_fields(message, f"messages[{i}].")]
        return [*super().unknown_fields(body, prefix), *unknown, *unknown_in_tools(body.get("tools") or ())]

    @property
    def generation_prompt(self) -> bool:
        """Whether the prompt ends where the assistant's turn begins."""
        return self.add_generation_prompt and not self.continue_final_message

    @property
    def template_messages(self) -> Sequence[Message]:
        """The messages as chat templates read them."""
        names: dict[str, str] = {}
        messages = []
        for message in self.messages:
            own = Message(role="system" if message.role == "developer" else message.role, content=message.text)
            if message.tool_calls:
                own["tool_calls"] = [_call(call) for call in message.tool_calls]
                names |= {call.id: call.function.name for call in message.tool_calls}
            if message.tool_call_id is not None:
                own["tool_call_id"], own["name"] = message.tool_call_id, names[message.tool_call_id]
            messages.append(own)
        return messages

    @property
    def prompt_tools(self) -> Sequence[Mapping[str, Any]]:
        """The definitions of the tools that the prompt describes."""
        return [tool.definition for tool in self.tools]

    @model_validator(mode="after")
    def _check_results(self) -> Self:
        called: set[str] = set()
        for i, message in enumerate(self.messages):
            if message.tool_call_id is not None and message.tool_call_id not in called:
                raise invalid("is the id of no call in an earlier message", f"messages[{i}].tool_call_id")
            called.update(call.id for call in message.tool_calls)
        return self

    @model_validator(mode="after")
    def _check_final_message(self) -> Self:
        if not self.continue_final_message:
            return self
        if self.add_generation_prompt and "add_generation_prompt" in self.model_fields_set:
            raise invalid("and 'add_generation_prompt' exclude each other", "continue_final_message")
        last = self.messages[-1]
        if last.role != "assistant" or last.tool_calls or not last.text.strip():
            raise invalid(
                "needs a last message from the assistant with some text, and without calls", "continue_final_message"
            )
        return self


def _call(call: RequestToolCall) -> ToolCall:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": call.function.arguments},
    }
