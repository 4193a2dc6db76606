"""The request of POST /v1/chat/completions."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from mpt_serve.openai.protocol.field_types import ALL_LOGPROBS, MAX_INT32, LogprobsCount, shown_default
from mpt_serve.openai.protocol.messages import ConversationRequest
from mpt_serve.openai.protocol.request_model import Refused
from mpt_serve.openai.protocol.sampling import SamplingRequest
from mpt_serve.openai.protocol.tool_grammar import MAX_CALLS, tools_grammar
from mpt_serve.openai.protocol.tools import ToolChoice, ToolChoiceField
from mpt_serve.openai.protocol.validation_errors import invalid
from mpt_serve.structured_outputs.spec import GrammarSpec

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
    tool_choice: ToolChoiceField | None = Field(
        None,
        description="Whether the model calls tools: never (they are left out of the prompt), as it likes, at least one,"
        " exactly one of a function, or only some of the functions.",
        json_schema_extra=shown_default("`auto` with `tools`, `none` without"),
    )
    parallel_tool_calls: bool = Field(
        True, description=f"A message may have several calls, up to {MAX_CALLS}; `false`: one at most."
    )

    refused: ClassVar[tuple[Refused, ...]] = (
        *ConversationRequest.refused,
        Refused("functions", "it is deprecated; use `tools`", ([],)),
        Refused("function_call", "it is deprecated; use `tool_choice`", ("none", "auto")),
        Refused("best_of", "only /v1/completions selects among choices", (1,)),
        Refused("modalities", "the models write nothing but text", (["text"],)),
        Refused("audio", "the models write nothing but text"),
        Refused("prediction", "predicted output has no effect here"),
        Refused("web_search_options", "the server fetches nothing"),
        Refused("reasoning_effort", "the models have no separate reasoning", ("none",)),
        Refused("verbosity", "the models have no such control", ("medium",)),
        *SamplingRequest.refused,
    )

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs if self.logprobs else None

    @property
    def echoed_text(self) -> str:
        """What each message of the response begins with."""
        last = self.messages[-1]
        return last.text if self.echo and last.role == "assistant" else ""

    @property
    def max_tokens_names(self) -> tuple[int | None, int | None]:
        return self.max_tokens, self.max_completion_tokens

    @property
    def prompt_tools(self) -> Sequence[Mapping[str, Any]]:
        return super().prompt_tools if self.choice.mode != "none" else ()

    @property
    def choice(self) -> ToolChoice:
        """Whether tools are called; never if there are none."""
        return (self.tool_choice or ToolChoice("auto")) if self.tools else ToolChoice("none")

    @property
    def output_grammar(self) -> tuple[str, GrammarSpec] | None:
        return self._tools_grammar or super().output_grammar

    @cached_property
    def _tools_grammar(self) -> tuple[str, GrammarSpec] | None:
        choice, content = self.choice, super().output_grammar
        if choice.mode == "none":
            return None
        callable_tools = {
            f"tools[{i}].function.parameters": tool
            for i, tool in enumerate(self.tools)
            if choice.names is None or tool.function.name in choice.names
        }
        at_most = MAX_CALLS if self.parallel_tool_calls and not choice.single else 1
        return "tools", tools_grammar(callable_tools, choice.mode, at_most, content and content[1])

    @model_validator(mode="after")
    def _check_tool_choice(self) -> Self:
        choice = self.tool_choice
        if choice is None or choice.mode == "none":
            return self
        if not self.tools and choice != ToolChoice("auto"):
            raise invalid("needs 'tools'", "tool_choice")
        known = {tool.function.name for tool in self.tools}
        for name, place in (choice.names or {}).items():
            if name not in known:
                raise invalid("must be the name of one of the 'tools'", f"tool_choice.{place}")
        return self

    @model_validator(mode="after")
    def _check_content(self) -> Self:
        content = super().output_grammar
        if self.choice.mode != "none" and content and content[1].kind not in ("json_object", "json_schema"):
            raise invalid(f"and '{content[0]}' exclude each other: with tools, content is any text or JSON", "tools")
        return self

    @model_validator(mode="after")
    def _check_top_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise invalid("needs 'logprobs': true", "top_logprobs")
        if self.logprob_token_ids is not None and not self.logprobs:
            raise invalid("needs 'logprobs': true", "logprob_token_ids")
        return self
