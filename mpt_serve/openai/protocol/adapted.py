"""Requests of other APIs, which chat answers."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from mpt_serve.openai.protocol.chat import ChatCompletionRequest
from mpt_serve.openai.protocol.field_names import FieldNames
from mpt_serve.openai.protocol.generation import GenerationFields
from mpt_serve.openai.protocol.request_model import Refused, RequestModel
from mpt_serve.openai.protocol.structured_outputs import StructuredOutputFields

__all__ = ["AdaptedRequest", "Turn", "refused_grammars"]

Turn = tuple[str, dict[str, Any]]  # the path of what a message of chat was made of, and the message


def refused_grammars(field: str) -> tuple[Refused, ...]:
    """Return chat's fields of structured outputs as fields that are refused. field: what to use instead."""
    names = (*StructuredOutputFields.wire_names(), *(own.name for own in StructuredOutputFields.refused))
    return tuple(Refused(name, f"use `{field}`") for name in names)


class AdaptedRequest(RequestModel):
    """A request that stands for one of chat."""

    @classmethod
    def field_order(cls) -> Sequence[str]:
        """Return the API's own fields first, then those that every request to generate has."""
        shared = set(GenerationFields.wire_names())
        return sorted(cls.wire_names(), key=lambda name: name in shared)

    @property
    @abstractmethod
    def turns(self) -> Sequence[Turn]:
        """The conversation as chat's messages."""

    @property
    @abstractmethod
    def chat_fields(self) -> Mapping[str, Any]:
        """Those of chat's other fields that have a value, beside the ones that have the same name in both APIs."""

    @cached_property
    @abstractmethod
    def names(self) -> FieldNames:
        """What errors call chat's fields."""

    @cached_property
    def chat(self) -> ChatCompletionRequest:
        """The request of chat. Raises InvalidValueError, in the words of chat unless `names` are applied."""
        shared = set(GenerationFields.wire_names())
        same = self.model_dump(mode="json", include=shared, exclude_unset=True)
        messages = [message for _, message in self.turns]
        return ChatCompletionRequest.parse({**same, "messages": messages, **self.chat_fields})
