"""Conversations as requests carry them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpt_serve.openai.errors import InvalidValueError, UnsupportedParameterError
from mpt_serve.openai.fields import Fields, Ignored, Offered, Refused
from mpt_serve.openai.kinds import Boolean, Choice, ListOf, Object, String
from mpt_serve.openai.server_context import ServerContext
from mpt_serve.text.chat_template import Message

__all__ = ["CONVERSATION_FIELDS", "MESSAGE_FIELDS", "Conversation"]


@dataclass(frozen=True)
class Content:
    """A string, or text parts, which are joined by line ends."""

    takes: str = 'a string or an array of parts {"type": "text", "text": "..."}'

    def check(self, value: Any, where: str) -> str:
        if isinstance(value, str):
            return String().check(value, where)
        parts = ListOf(Object(), 1024, may_be_empty=False).check(value, where)
        return "\n".join(self._part(part, f"{where}[{i}]") for i, part in enumerate(parts))

    def _part(self, part: Mapping[str, Any], where: str) -> str:
        if part.get("type") != "text":
            message = f"'{where}' must be a text part: the models read nothing but text."
            raise UnsupportedParameterError(message, param=f"{where}.type")
        return String().check(part.get("text"), f"{where}.text")


MESSAGE_FIELDS = Fields(
    Offered("role", Choice(("system", "developer", "user", "assistant")), "`developer` means `system`.", required=True),
    Offered("content", Content(), "The message's text.", required=True),
    Ignored("name", String(256), "The chat formats have no names."),
    Ignored("refusal", String(), "Part of earlier answers."),
    Ignored("annotations", ListOf(Object(), 1024), "Part of earlier answers."),
    Refused("tool_calls", "the models have no tool format", ([],)),
    Refused("tool_call_id", "the models have no tool format"),
    Refused("function_call", "the models have no tool format"),
    Refused("audio", "the models read nothing but text"),
)

CONVERSATION_FIELDS = (
    Offered("messages", ListOf(Object(), 4096, may_be_empty=False), "The conversation, oldest first.", required=True),
    Offered("add_generation_prompt", Boolean(), "End the prompt where the assistant's turn begins.", True),
    Offered(
        "continue_final_message",
        Boolean(),
        "Continue the last message, the assistant's, instead of beginning a turn; excludes `add_generation_prompt`.",
        False,
    ),
    Refused("chat_template", "templates come from the checkpoint or the server's setting chat_template"),
    Refused("chat_template_kwargs", "templates take no variables from requests", ({},)),
    Refused("documents", "the chat formats have no documents", ([],)),
)


@dataclass(frozen=True)
class Conversation:
    """Messages that are ready for the chat template."""

    messages: Sequence[Message]
    add_generation_prompt: bool
    continue_final_message: bool
    unknown: tuple[str, ...]  # message fields that nobody knows

    @classmethod
    def from_values(cls, values: Mapping[str, Any], given: frozenset[str]) -> "Conversation":
        """Build from parsed fields. Raises InvalidValueError or UnsupportedParameterError."""
        parsed = [MESSAGE_FIELDS.parse(body, f"messages[{i}].") for i, body in enumerate(values["messages"])]
        messages = [_message(message.values) for message in parsed]
        continues = values["continue_final_message"]
        if continues and "add_generation_prompt" in given and values["add_generation_prompt"]:
            message = "'continue_final_message' and 'add_generation_prompt' exclude each other."
            raise InvalidValueError(message, param="continue_final_message")
        if continues and (messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip()):
            message = "'continue_final_message' needs a last message of the assistant's that has some text."
            raise InvalidValueError(message, param="continue_final_message")
        unknown = dict.fromkeys(name for message in parsed for name in message.unknown)
        return cls(messages, values["add_generation_prompt"] and not continues, continues, tuple(unknown))

    async def tokenize(self, service: ServerContext) -> list[int]:
        """Render and tokenize. Raises InvalidValueError if the model has no chat template."""
        if not service.backend.model.has_chat_template:
            raise InvalidValueError(
                "This model has no chat template, so it takes no conversations: use /v1/completions, or have the"
                " server's setting 'chat_template' name a format ('chatml' for the MPT chat models, 'dolly' for the"
                " MPT instruct models, or a .jinja file).",
                param="messages",
            )
        return await service.backend.encode_chat(self.messages, self.add_generation_prompt, self.continue_final_message)


def _message(values: Mapping[str, Any]) -> Message:
    return Message(role="system" if values["role"] == "developer" else values["role"], content=values["content"])
