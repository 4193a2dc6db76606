"""The fields that completions and chat share: how tokens are selected, when text stops, how it is sent."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mpt_serve.engine.sampling_params import INTEGER_BOUNDS, MAX_BIASED_IDS, NUMBER_BOUNDS
from mpt_serve.openai.protocol.compatibility import IGNORED, REFUSED_FIELDS, IgnoredFields
from mpt_serve.openai.protocol.field_types import (
    ALL_LOGPROBS,
    MAX_INT32,
    POSITIVE_ZERO,
    LogprobsCount,
    TokenId,
    TokensKept,
    shown_default,
)
from mpt_serve.openai.protocol.request_model import Refused, RequestModel
from mpt_serve.openai.protocol.schema_words import Accepts
from mpt_serve.openai.protocol.structured_outputs import StructuredOutputFields
from mpt_serve.openai.protocol.validation_errors import invalid

__all__ = ["SamplingRequest", "StreamOptions"]

_BIAS_WORDS = f"an object of at most {MAX_BIASED_IDS} members: ids as strings, with a number from -100 to 100 each"


def _few_biases(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_BIASED_IDS:
        raise invalid(f"must be {_BIAS_WORDS}; got {len(value)} members")
    return value


def _not_blank(words: tuple[str, ...]) -> tuple[str, ...]:
    if not all(word.strip(" ") for word in words):
        raise invalid("must not contain a string of spaces alone")
    return words


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


_Text = Annotated[str, Field(min_length=1, max_length=256)]
_Texts = Annotated[tuple[_Text, ...], Field(max_length=16, strict=False, fail_fast=True)]
StopStrings = Annotated[_Texts, BeforeValidator(_as_list, json_schema_input_type=_Text | _Texts)]
LogitBias = Annotated[
    dict[
        Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,9})$")], Annotated[float, Field(ge=-100, le=100), POSITIVE_ZERO]
    ],
    Field(max_length=MAX_BIASED_IDS),
    BeforeValidator(_few_biases),
    Accepts(_BIAS_WORDS),
]
BadWords = Annotated[tuple[_Text, ...], Field(max_length=128, strict=False, fail_fast=True), AfterValidator(_not_blank)]
StopTokenIds = Annotated[tuple[TokenId, ...], Field(max_length=128, strict=False, fail_fast=True)]
AllowedTokenIds = Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=262_144, strict=False, fail_fast=True)]


class StreamOptions(RequestModel):
    """The object of OpenAI's API."""

    include_usage: bool = Field(False, description="Send one more chunk, without choices, that carries the usage.")
    continuous_usage_stats: bool = Field(
        False, description="With `include_usage`: every chunk carries the usage so far."
    )
    include_obfuscation: bool | None = Field(None, description="Chunks carry no padding.", json_schema_extra=IGNORED)


class SamplingRequest(IgnoredFields, StructuredOutputFields):
    """The fields that completions and chat share."""

    n: int = Field(
        1, ge=1, le=128, description="Choices for each prompt, which is read once. The i-th of prompt p is p x n + i."
    )
    temperature: Annotated[float, NUMBER_BOUNDS["temperature"], Field(le=2), POSITIVE_ZERO] = Field(
        1.0, description="Randomness of the sampled tokens; 0 always takes the most likely one."
    )
    top_p: Annotated[float, NUMBER_BOUNDS["top_p"]] = Field(
        1.0, description="Keep the most likely tokens that together reach this probability."
    )
    top_k: int = Field(
        0, ge=-1, le=MAX_INT32, description="Keep this number of the most likely tokens; 0 and -1 keep all."
    )
    min_p: Annotated[float, NUMBER_BOUNDS["min_p"], POSITIVE_ZERO] = Field(
        0.0, description="Drop tokens less likely than this share of the most likely one's probability."
    )
    repetition_penalty: Annotated[float, NUMBER_BOUNDS["repetition_penalty"]] = Field(
        1.0,
        description="Divides the positive logits, and multiplies the negative ones, of tokens in the prompt or the"
        " output.",
    )
    presence_penalty: Annotated[float, NUMBER_BOUNDS["presence_penalty"], POSITIVE_ZERO] = Field(
        0.0, description="Subtracted from the logits of tokens in the output."
    )
    frequency_penalty: Annotated[float, NUMBER_BOUNDS["frequency_penalty"], POSITIVE_ZERO] = Field(
        0.0, description="The same, once for each time that the token is in the output."
    )
    logit_bias: LogitBias = Field({}, description="Added to the logits of these tokens.")
    allowed_token_ids: AllowedTokenIds | None = Field(
        None, description="No other token is sampled.", json_schema_extra=shown_default("all")
    )
    bad_words: BadWords = Field(
        (),
        description="The tokens that spell these words, with and without a space before them, never follow each other.",
    )
    seed: int | None = Field(
        None,
        ge=-(2**63),
        le=2**63 - 1,
        description="The same seed and request give the same text, whatever else the server does; each choice has its"
        " own random numbers.",
        json_schema_extra=shown_default("random"),
    )
    stop: StopStrings = Field(
        (),
        description="The text ends before the first of these strings.",
    )
    stop_token_ids: StopTokenIds = Field(
        (),
        description="Generation ends at the first of these ids; its text is left out.",
    )
    include_stop_str_in_output: bool = Field(
        False, description="Keep the stop string, or the stop id's text, in the text."
    )
    min_tokens: Annotated[int, INTEGER_BOUNDS["min_tokens"]] = Field(
        0, description="Nothing ends the text before this number of tokens."
    )
    ignore_eos: bool = Field(False, description="Continue after the model's end-of-text token.")
    prompt_logprobs: LogprobsCount | None = Field(
        None,
        description="Log probabilities of the prompt's tokens and of this number of the most likely ones, not with"
        f" `stream`; {ALL_LOGPROBS}.",
    )
    return_token_ids: bool = Field(False, description="Add `prompt_token_ids` and `token_ids` to the response.")
    return_tokens_as_token_ids: bool = Field(False, description="Name every token by its id, as `token_id:64`.")
    skip_special_tokens: bool = Field(True, description="Leave special tokens such as `<|endoftext|>` out of the text.")
    truncate_prompt_tokens: TokensKept | None = Field(
        None,
        description="Cut a longer prompt to this number of tokens; -1 cuts to what fits beside `max_tokens`, or beside"
        " its default (in chat a quarter of the context).",
        json_schema_extra=shown_default("never cut"),
    )
    truncation_side: Literal["left", "right"] = Field("left", description="The side that the cut takes tokens from.")
    stream: bool = Field(False, description="Send the text while it is generated, as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="See below; only with `stream`.")
    priority: Annotated[int, INTEGER_BOUNDS["priority"]] = Field(
        0, description="Lower goes first: each unit is worth 16 places in the queue."
    )
    cache_salt: _Text | None = Field(
        None,
        description="Cached prompts are shared only between requests with the same salt.",
        json_schema_extra=shown_default("shared by all without one"),
    )

    refused: ClassVar[tuple[Refused, ...]] = (*StructuredOutputFields.refused, *REFUSED_FIELDS)

    @classmethod
    def field_order(cls) -> Sequence[str]:
        """Return the endpoint's own fields first, then those of this class, then those of its bases."""
        shared = set(SamplingRequest.wire_names())
        inherited = {*StructuredOutputFields.wire_names(), *IgnoredFields.wire_names()}
        return sorted(cls.wire_names(), key=lambda name: (name in shared) + (name in inherited))

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
    def biases(self) -> tuple[tuple[int, float], ...]:
        """`logit_bias` as pairs of an id and a number."""
        return tuple((int(token_id), bias) for token_id, bias in self.logit_bias.items())

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
        if self.stream_options is not None and not self.stream:
            raise invalid("needs 'stream': true", "stream_options")
        if self.ignore_eos and self.output_grammar is not None:
            predicate = f"and '{self.output_grammar[0]}' exclude each other: structured output ends where its text does"
            raise invalid(predicate, "ignore_eos")
        if None not in self.max_tokens_names and len(set(self.max_tokens_names)) > 1:
            raise invalid("and 'max_tokens' differ: send one of them", "max_completion_tokens")
        return self
