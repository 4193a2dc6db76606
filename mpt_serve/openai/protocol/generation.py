"""The fields of every request that generates: how tokens are selected, and when text stops."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.config import JsonDict

from mpt_serve.engine.sampling_params import INTEGER_BOUNDS, MAX_BIASED_IDS, NUMBER_BOUNDS
from mpt_serve.openai.protocol.compatibility import REFUSED_FIELDS
from mpt_serve.openai.protocol.field_types import MAX_INT32, POSITIVE_ZERO, TokenId, TokensKept, as_list, shown_default
from mpt_serve.openai.protocol.request_model import Refused, RequestModel
from mpt_serve.openai.protocol.schema_words import Accepts
from mpt_serve.openai.protocol.validation_errors import invalid

__all__ = ["GenerationFields", "StopStrings"]

_BIAS_WORDS = f"an object of at most {MAX_BIASED_IDS} members: ids as strings, with a number from -100 to 100 each"


def _few_biases(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_BIASED_IDS:
        raise invalid(f"must be {_BIAS_WORDS}; got {len(value)} members")
    return value


def _not_blank(words: tuple[str, ...]) -> tuple[str, ...]:
    if not all(word.strip(" ") for word in words):
        raise invalid("must not contain a string of spaces alone")
    return words


_Text = Annotated[str, Field(min_length=1, max_length=256)]
_Texts = Annotated[tuple[_Text, ...], Field(max_length=16, strict=False, fail_fast=True)]
StopStrings = Annotated[_Texts, BeforeValidator(as_list, json_schema_input_type=_Text | _Texts)]
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


def _shown(default: str) -> JsonDict:
    return shown_default(f"{default}, or of `sampling_defaults`")


class GenerationFields(RequestModel):
    """How tokens are selected, and when text stops."""

    temperature: Annotated[float, NUMBER_BOUNDS["temperature"], Field(le=2), POSITIVE_ZERO] = Field(
        1.0,
        description="Randomness of the sampled tokens; 0 always takes the most likely one.",
        json_schema_extra=_shown("1.0"),
    )
    top_p: Annotated[float, NUMBER_BOUNDS["top_p"]] = Field(
        1.0,
        description="Keep the most likely tokens that together reach this probability.",
        json_schema_extra=_shown("1.0"),
    )
    top_k: int = Field(
        0,
        ge=-1,
        le=MAX_INT32,
        description="Keep this number of the most likely tokens; 0 and -1 keep all.",
        json_schema_extra=_shown("0"),
    )
    min_p: Annotated[float, NUMBER_BOUNDS["min_p"], POSITIVE_ZERO] = Field(
        0.0,
        description="Drop tokens less likely than this share of the most likely one's probability.",
        json_schema_extra=_shown("0.0"),
    )
    repetition_penalty: Annotated[float, NUMBER_BOUNDS["repetition_penalty"]] = Field(
        1.0,
        description="Divides the positive logits, and multiplies the negative ones, of tokens in the prompt or the"
        " output.",
        json_schema_extra=_shown("1.0"),
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
    skip_special_tokens: bool = Field(True, description="Leave special tokens such as `<|endoftext|>` out of the text.")
    truncate_prompt_tokens: TokensKept | None = Field(
        None,
        description="Cut a longer prompt to this number of tokens; -1 cuts to what fits beside `max_tokens`, or beside"
        " its default (in chat a quarter of the context).",
        json_schema_extra=shown_default("never cut"),
    )
    truncation_side: Literal["left", "right"] = Field("left", description="The side that the cut takes tokens from.")
    priority: Annotated[int, INTEGER_BOUNDS["priority"]] = Field(
        0, description="Lower goes first: each unit is worth 16 places in the queue."
    )
    cache_salt: _Text | None = Field(
        None,
        description="Cached prompts are shared only between requests with the same salt. With one, a request takes no"
        " drafts from the outputs of others, and leaves none.",
        json_schema_extra=shown_default("shared by all without one"),
    )

    refused: ClassVar[tuple[Refused, ...]] = REFUSED_FIELDS

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """`logit_bias` as pairs of an id and a number."""
        return tuple((int(token_id), bias) for token_id, bias in self.logit_bias.items())
