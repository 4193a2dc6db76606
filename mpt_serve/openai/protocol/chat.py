"""The request of POST /v1/chat/completions."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from mpt_serve.openai.protocol.compatibility import IGNORED
from mpt_serve.openai.protocol.field_types import ALL_LOGPROBS, MAX_INT32, LogprobsCount, shown_default
from mpt_serve.openai.protocol.messages import ConversationRequest
from mpt_serve.openai.protocol.request_model import Refused
from mpt_serve.openai.protocol.sampling import SamplingRequest
from mpt_serve.openai.protocol.validation_errors import invalid

__all__ = ["ChatCompletionRequest"]


class ChatCompletionRequest(SamplingRequest, ConversationRequest):
    """The body of POST /v1/chat/completions."""

    max_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_INT32,
        description="Generated tokens at most. More than the context leaves is an error.",
        json_schema_extra=shown_default("what the context leaves"),
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_INT32, description="The newer name of `max_tokens`; both must agree."
    )
    logprobs: bool = Field(False, description="Return the log probabilities of the text's tokens.")
    top_logprobs: LogprobsCount = Field(
        0, description=f"And of this number of the most likely ones, only with `logprobs`; {ALL_LOGPROBS}."
    )
    echo: bool = Field(
        False, description="Begin each message with the last one of the conversation, if that is the assistant's."
    )
    parallel_tool_calls: bool | None = Field(None, description="There are no tool calls.", json_schema_extra=IGNORED)

    refused: ClassVar[tuple[Refused, ...]] = (
        *ConversationRequest.refused,
        Refused("tools", 'the models have no tool format; with `"tool_choice": "none"` they are left out', ([],)),
        Refused("tool_choice", "the models have no tool format", ("none", "auto")),
        Refused("functions", "the models have no tool format", ([],)),
        Refused("function_call", "the models have no tool format", ("none", "auto")),
        Refused("best_of", "only /v1/completions selects among choices", (1,)),
        Refused("modalities", "the models write nothing but text", (["text"],)),
        Refused("audio", "the models write nothing but text"),
        Refused("prediction", "predicted output has no effect here"),
        Refused("web_search_options", "the server fetches nothing"),
        Refused("reasoning_effort", "the models have no separate reasoning", ("none",)),
        Refused("verbosity", "the models have no such control", ("medium",)),
        *SamplingRequest.refused,
    )

    @classmethod
    def check_refused(cls, members: Mapping[str, Any]) -> None:
        """Raise an error for a refused member; tools pass if the client itself requests a response without them."""
        if members.get("tool_choice") == "none":
            members = {name: value for name, value in members.items() if name not in ("tools", "functions")}
        super().check_refused(members)

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs if self.logprobs else None

    @property
    def echoed_text(self) -> str:
        """What each message of the response begins with."""
        last = self.messages[-1]
        return last.content if self.echo and last.role == "assistant" else ""

    @property
    def max_tokens_names(self) -> tuple[int | None, int | None]:
        return self.max_tokens, self.max_completion_tokens

    @model_validator(mode="after")
    def _check_top_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise invalid("needs 'logprobs': true", "top_logprobs")
        return self
