"""The request of POST /v1/completions."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from mpt_serve.engine.sampling_params import INTEGER_BOUNDS
from mpt_serve.openai.protocol.field_types import (
    ALL_LOGPROBS,
    LogprobsCount,
    ModelId,
    TokenId,
    as_list,
    encodable,
    shown_default,
)
from mpt_serve.openai.protocol.request_model import Refused
from mpt_serve.openai.protocol.sampling import SamplingRequest
from mpt_serve.openai.protocol.schema_words import Accepts, json_type
from mpt_serve.openai.protocol.validation_errors import invalid, unsupported

__all__ = ["DEFAULT_MAX_TOKENS", "CompletionRequest", "Prompt"]

DEFAULT_MAX_TOKENS = 16

Prompt = str | tuple[int, ...]

_PROMPT_WORDS = (
    "a non-empty string, an array of such strings, an array of token ids, or an array of such arrays of token ids"
)


def _prompts(value: Any) -> tuple[Prompt, ...]:
    """Return the prompts of any of the four shapes."""
    if isinstance(value, str):
        return (_text(value),)
    if not isinstance(value, list) or not value:
        raise _refused(value)
    kinds = set(map(type, value))
    if kinds == {str}:
        return tuple(map(_text, value))
    if kinds == {list}:
        return tuple(map(_ids, value))
    return (_ids(value),)


def _text(value: str) -> str:
    if not value:
        raise invalid(f"must be {_PROMPT_WORDS}; got an empty string")
    return encodable(value)


def _ids(value: list[Any]) -> tuple[int, ...]:
    if set(map(type, value)) != {int}:  # true is an int in Python, but not a token id
        raise _refused(value)
    return tuple(value)


def _refused(value: Any) -> Exception:
    came = "an empty array" if value == [] else json_type(value)
    content = " with other elements" if value and isinstance(value, list) else ""
    return invalid(f"must be {_PROMPT_WORDS}; got {came}{content}")


_PromptText = Annotated[str, Field(min_length=1)]
_PromptIds = Annotated[list[TokenId], Field(min_length=1)]
Prompts = Annotated[
    tuple[Prompt, ...],
    PlainValidator(
        _prompts,
        json_schema_input_type=_PromptText
        | Annotated[list[_PromptText], Field(min_length=1)]
        | _PromptIds
        | Annotated[list[_PromptIds], Field(min_length=1)],
    ),
    Accepts(_PROMPT_WORDS),
]
_File = Annotated[str, Field(min_length=1)]
_Files = Annotated[tuple[_File, ...], Field(min_length=1, max_length=128, strict=False, fail_fast=True)]
PromptFiles = Annotated[_Files, BeforeValidator(as_list, json_schema_input_type=_File | _Files)]
_MaxTokens = Annotated[int, INTEGER_BOUNDS["max_tokens"]]


class CompletionRequest(SamplingRequest):
    """The body of POST /v1/completions."""

    model: ModelId = None
    prompt: Prompts | None = Field(
        None,
        description="What the text continues. Several prompts make several choices.",
        json_schema_extra=shown_default("required, unless there are `prompt_embeds`"),
    )
    prompt_embeds: PromptFiles = Field(
        (),
        description="Prompts of embeddings, where the server's `engine.prompt_embeds` allows them: a safetensors file"
        " with one tensor (tokens, hidden size) of float32, float16 or bfloat16 in base64, or an array of such. Their"
        " choices come before those of `prompt`. Not with `echo`, `prompt_logprobs` and `truncate_prompt_tokens`.",
        json_schema_extra=shown_default("none"),
    )
    add_special_tokens: bool = Field(True, description="Let the tokenizer add its own special tokens to text prompts.")
    parse_special_tokens: bool = Field(
        True,
        description="Control tokens such as `<|endoftext|>` in text prompts become their ids; `false`: ordinary text.",
    )
    max_tokens: _MaxTokens | None = Field(
        None,
        description="Generated tokens at most; with 0 the prompt is only read. More than the context leaves is an"
        " error.",
        json_schema_extra=shown_default(f"{DEFAULT_MAX_TOKENS}, or what the context leaves"),
    )
    max_completion_tokens: _MaxTokens | None = Field(
        None, description="The newer name of `max_tokens`; both must agree."
    )
    best_of: int | None = Field(
        None,
        ge=1,
        le=128,
        description="Generate this number of choices for each prompt and return the `n` of the highest mean log"
        " probability.",
        json_schema_extra=shown_default("`n`"),
    )
    echo: bool = Field(False, description="Begin each text with the prompt, special tokens included.")
    logprobs: LogprobsCount | None = Field(
        None,
        description="Log probabilities of the text's tokens (with `echo` the prompt's, too) and of this number of the"
        f" most likely ones; {ALL_LOGPROBS}.",
    )

    refused: ClassVar[tuple[Refused, ...]] = (
        Refused("top_logprobs", "it belongs to chat; here `logprobs` is the number", (0,)),
        Refused("suffix", "the models cannot fill in the middle", ("",)),
        *SamplingRequest.refused,
    )

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def max_tokens_names(self) -> tuple[int | None, int | None]:
        return self.max_tokens, self.max_completion_tokens

    @property
    def num_choices(self) -> int:
        return self.n if self.best_of is None else self.best_of

    @property
    def echo_prompt(self) -> bool:
        return self.echo

    @model_validator(mode="after")
    def _check_prompt_embeds(self) -> Self:
        if self.prompt is None and not self.prompt_embeds:
            raise invalid(f"is required: {_PROMPT_WORDS}", "prompt")
        used = {
            "echo": self.echo,
            "prompt_logprobs": self.prompt_logprobs is not None,
            "truncate_prompt_tokens": self.truncate_prompt_tokens is not None,
        }
        for name in used if self.prompt_embeds else ():
            if used[name]:
                raise unsupported("is not offered with 'prompt_embeds': such a prompt has no tokens", name)
        return self

    @model_validator(mode="after")
    def _check_best_of(self) -> Self:
        if self.num_choices < self.n:
            raise invalid(f"must not be below 'n', here {self.n}", "best_of")
        if self.num_choices > self.n and self.stream:
            raise invalid("above 'n' is only available without 'stream': the best are known at the end", "best_of")
        return self
