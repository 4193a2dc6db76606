"""The fields that completions and chat share: how tokens are selected, when text stops, how it is sent."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from mpt_serve.engine.sampling_params import MAX_LOGPROB_TOKEN_IDS
from mpt_serve.openai.protocol.compatibility import IGNORED, IgnoredFields
from mpt_serve.openai.protocol.field_types import ALL_LOGPROBS, LogprobsCount, TokenId
from mpt_serve.openai.protocol.generation import GenerationFields
from mpt_serve.openai.protocol.request_model import Refused, RequestModel
from mpt_serve.openai.protocol.structured_outputs import StructuredOutputFields
from mpt_serve.openai.protocol.validation_errors import invalid

__all__ = ["SamplingRequest", "StreamOptions"]


NamedTokenIds = Annotated[
    tuple[TokenId, ...], Field(min_length=1, max_length=MAX_LOGPROB_TOKEN_IDS, strict=False, fail_fast=True)
]


class StreamOptions(RequestModel):
    """The object of OpenAI's API."""

    include_usage: bool = Field(False, description="Send one more chunk, without choices, that carries the usage.")
    continuous_usage_stats: bool = Field(
        False, description="With `include_usage`: every chunk carries the usage so far."
    )
    include_obfuscation: bool | None = Field(None, description="Chunks carry no padding.", json_schema_extra=IGNORED)


class SamplingRequest(IgnoredFields, StructuredOutputFields, GenerationFields):
    """The fields that completions and chat share."""

    n: int = Field(
        1, ge=1, le=128, description="Choices for each prompt, which is read once. The i-th of prompt p is p x n + i."
    )
    prompt_logprobs: LogprobsCount | None = Field(
        None,
        description="Log probabilities of the prompt's tokens and of this number of the most likely ones, not with"
        f" `stream`; {ALL_LOGPROBS}.",
    )
    logprob_token_ids: NamedTokenIds | None = Field(
        None,
        description="Log probabilities of these ids after each generated token, in place of those of the most likely"
        " ones; in chat with `logprobs`.",
    )
    return_token_ids: bool = Field(False, description="Add `prompt_token_ids` and `token_ids` to the response.")
    return_tokens_as_token_ids: bool = Field(False, description="Name every token by its id, as `token_id:64`.")
    stream: bool = Field(False, description="Send the text while it is generated, as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="See below; only with `stream`.")

    refused: ClassVar[tuple[Refused, ...]] = (*StructuredOutputFields.refused, *GenerationFields.refused)

    @classmethod
    def field_order(cls) -> Sequence[str]:
        """Return the endpoint's own fields first, then those of this class, then those of its bases."""
        shared, fields = set(SamplingRequest.wire_names()), set(GenerationFields.wire_names())
        inherited = {*StructuredOutputFields.wire_names(), *IgnoredFields.wire_names()}
        return sorted(cls.wire_names(), key=lambda name: (name in shared) + (name in fields) + 2 * (name in inherited))

    @classmethod
    def unknown_fields(cls, body: Mapping[str, Any], prefix: str = "") -> Sequence[str]:
        """Return the paths of unknown members, those of the stream options included."""
        options = body.get("stream_options") or {}
        return [*super().unknown_fields(body, prefix), *StreamOptions.unknown_fields(options, "stream_options.")]

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """Alternatives reported for each generated token, beside the token itself; None for no log probabilities."""

    @property
    @abstractmethod
    def max_tokens_names(self) -> tuple[int | None, int | None]:
        """`max_tokens` and its newer name, `max_completion_tokens`."""

    @property
    def num_choices(self) -> int:
        """Choices that are generated for each prompt, at least `n`."""
        return self.n

    @property
    def echo_prompt(self) -> bool:
        """Whether each text begins with the prompt."""
        return False

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk of a stream has the usage so far."""
        options = self.stream_options
        return options is not None and options.include_usage and options.continuous_usage_stats

    @property
    def requested_tokens(self) -> int | None:
        """The tokens that may be generated at most; None where the request does not say."""
        old, new = self.max_tokens_names
        return new if old is None else old

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.prompt_logprobs is not None and self.stream:
            raise invalid("is only available without 'stream'", "prompt_logprobs")
        named = self.logprob_token_ids
        if named is not None and len(set(named)) < len(named):
            raise invalid("must not have an id twice", "logprob_token_ids")
        if self.stream_options is not None and not self.stream:
            raise invalid("needs 'stream': true", "stream_options")
        if self.ignore_eos and self.output_grammar is not None:
            predicate = f"and '{self.output_grammar[0]}' exclude each other: structured output ends where its text does"
            raise invalid(predicate, "ignore_eos")
        if None not in self.max_tokens_names and len(set(self.max_tokens_names)) > 1:
            raise invalid("and 'max_tokens' differ: send one of them", "max_completion_tokens")
        return self
