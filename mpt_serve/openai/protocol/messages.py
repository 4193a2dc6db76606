"""Conversations as requests carry them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field, PlainValidator, model_validator

from mpt_serve.openai.protocol.compatibility import IGNORED
from mpt_serve.openai.protocol.field_types import ModelId, Text, encodable
from mpt_serve.openai.protocol.request_model import Refused, RequestModel
from mpt_serve.openai.protocol.schema_words import Accepts, json_type
from mpt_serve.openai.protocol.validation_errors import invalid, unsupported
from mpt_serve.text.chat_template import Message

__all__ = ["ChatMessage", "ConversationRequest"]

MAX_PARTS = 1024

_CONTENT_WORDS = 'a string or an array of parts {"type": "text", "text": "..."}'
_TEXT_MEMBERS = {"text": "text", "refusal": "refusal"}  # by a part's type, the member that holds its text


class TextPart(BaseModel):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class RefusalPart(BaseModel):
    """A part of an earlier response with which a model has refused."""

    type: Literal["refusal"]
    refusal: str


def _content(value: Any) -> str:
    """Return the text of a content; that of several parts is joined by line ends."""
    if isinstance(value, str):
        return encodable(value)
    if not isinstance(value, list):
        raise invalid(f"must be {_CONTENT_WORDS}; got {json_type(value)}")
    if not 0 < len(value) <= MAX_PARTS:
        raise invalid(f"must be a string or an array of 1 to {MAX_PARTS} parts; got {len(value)} parts")
    return "\n".join(_part(part, f"[{place}]") for place, part in enumerate(value))


def _part(part: Any, place: str) -> str:
    if not isinstance(part, dict):
        raise invalid(f"must be an object; got {json_type(part)}", place)
    kind = part.get("type")
    member = _TEXT_MEMBERS.get(kind) if isinstance(kind, str) else None
    if member is None:
        raise unsupported('must be "text" or "refusal": the models read nothing else', f"{place}.type")
    text = part.get(member)
    if not isinstance(text, str):
        raise invalid(f"must be a string; got {json_type(text)}", f"{place}.{member}")
    return encodable(text, f"{place}.{member}")


Content = Annotated[
    str,
    PlainValidator(
        _content,
        json_schema_input_type=str | Annotated[list[TextPart | RefusalPart], Field(min_length=1, max_length=MAX_PARTS)],
    ),
    Accepts(_CONTENT_WORDS),
]
Annotations = Annotated[tuple[dict[str, Any], ...], Field(max_length=1024, strict=False, fail_fast=True)]


class ChatMessage(RequestModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="`developer` means `system`.")
    content: Content = Field(description="The message's text.")
    name: str | None = Field(
        None, max_length=256, description="The chat formats have no names.", json_schema_extra=IGNORED
    )
    refusal: Text | None = Field(None, description="Part of earlier responses.", json_schema_extra=IGNORED)
    annotations: Annotations | None = Field(None, description="Part of earlier responses.", json_schema_extra=IGNORED)

    refused: ClassVar[tuple[Refused, ...]] = (
        Refused("tool_calls", "the models have no tool format", ([],)),
        Refused("tool_call_id", "the models have no tool format"),
        Refused("function_call", "the models have no tool format"),
        Refused("audio", "the models read nothing but text"),
    )


class ConversationRequest(RequestModel):
    """The fields of every request with a conversation."""

    model: ModelId = None
    messages: Annotated[tuple[ChatMessage, ...], Field(strict=False, fail_fast=True)] = Field(
        min_length=1, max_length=4096, description="The conversation, oldest first."
    )
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
        return [*super().unknown_fields(body, prefix), *unknown]

    @property
    def generation_prompt(self) -> bool:
        """Whether the prompt ends where the assistant's turn begins."""
        return self.add_generation_prompt and not self.continue_final_message

    @property
    def template_messages(self) -> Sequence[Message]:
        """The messages as chat templates read them."""
        return [
            Message(role="system" if message.role == "developer" else message.role, content=message.content)
            for message in self.messages
        ]

    @model_validator(mode="after")
    def _check_final_message(self) -> Self:
        if not self.continue_final_message:
            return self
        if self.add_generation_prompt and "add_generation_prompt" in self.model_fields_set:
            raise invalid("and 'add_generation_prompt' exclude each other", "continue_final_message")
        last = self.messages[-1]
        if last.role != "assistant" or not last.content.strip():
            raise invalid("needs a last message from the assistant with some text", "continue_final_message")
        return self
