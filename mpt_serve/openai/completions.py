"""POST /v1/completions: text that continues a prompt."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpt_serve.openai.endpoint import Prepared
from mpt_serve.openai.errors import InvalidValueError
from mpt_serve.openai.fields import Fields, Offered, Refused
from mpt_serve.openai.kinds import Boolean, Integer, String, json_type
from mpt_serve.openai.logprobs import completion_logprobs
from mpt_serve.openai.output_choice import ChoicePart
from mpt_serve.openai.output_options import OutputOptions
from mpt_serve.openai.response_builder import ResponseBuilder
from mpt_serve.openai.sampling import SamplingOptions
from mpt_serve.openai.sampling_fields import IGNORED_FIELDS, MODEL_FIELD, REFUSED_FIELDS, SAMPLING_FIELDS
from mpt_serve.openai.server_context import ServerContext

__all__ = ["COMPLETION_FIELDS", "CompletionResponseBuilder", "prepare_completion"]

DEFAULT_MAX_TOKENS = 16

Prompt = str | tuple[int, ...]


@dataclass(frozen=True)
class Prompts:
    """A prompt, or several, as text or as ids; comes out as a tuple of prompts."""

    takes: str = "a non-empty string, an array of such, an array of token ids, or an array of such arrays"

    def check(self, value: Any, where: str) -> tuple[Prompt, ...]:
        if isinstance(value, str):
            return (self._text(value, where),)
        if not isinstance(value, list) or not value:
            raise self._refused(value, where)
        if all(isinstance(item, str) for item in value):
            return tuple(self._text(item, where) for item in value)
        if all(isinstance(item, list) for item in value):
            return tuple(self._ids(item, where) for item in value)
        return (self._ids(value, where),)

    def _text(self, value: str, where: str) -> str:
        return String(may_be_empty=False).check(value, where)

    def _ids(self, value: list[Any], where: str) -> tuple[int, ...]:
        if not value or not all(type(item) is int for item in value):  # True is an int, but no id
            raise self._refused(value, where)
        return tuple(value)

    def _refused(self, value: Any, where: str) -> InvalidValueError:
        came = "an empty array" if value == [] else json_type(value)
        content = " of another content" if value and isinstance(value, list) else ""
        return InvalidValueError(f"'{where}' must be {self.takes}; got {came}{content}.", param=where)


TOKEN_COUNT = Integer(0, 2**31 - 1)

COMPLETION_FIELDS = Fields(
    MODEL_FIELD,
    Offered("prompt", Prompts(), "What the text continues. Several prompts make several choices.", required=True),
    Offered("add_special_tokens", Boolean(), "Let the tokenizer add its own special tokens to text prompts.", True),
    Offered(
        "max_tokens",
        TOKEN_COUNT,
        "Generated tokens at most; with 0 the prompt is only read. More than the context leaves is an error.",
        shown_default=f"{DEFAULT_MAX_TOKENS}, or what the context leaves",
    ),
    Offered("max_completion_tokens", TOKEN_COUNT, "The newer name of `max_tokens`; both must agree."),
    Offered(
        "best_of",
        Integer(1, 128),
        "Make so many choices for each prompt and answer with the `n` of the highest mean log probability.",
        shown_default="`n`",
    ),
    Offered("echo", Boolean(), "Begin each text with the prompt, special tokens included.", False),
    Offered(
        "logprobs",
        Integer(0, 20),
        "Log probabilities of the text's tokens (with `echo` the prompt's, too) and of so many of the likeliest ones.",
        shown_default="none",
    ),
    *SAMPLING_FIELDS,
    Refused("top_logprobs", "it is the name in chat; here the number stands in `logprobs`", (0,)),
    Refused("suffix", "the models cannot fill in the middle", ("",)),
    Refused("prompt_embeds", "prompts are text or ids"),
    *REFUSED_FIELDS,
    *IGNORED_FIELDS,
)


class CompletionResponseBuilder(ResponseBuilder):
    id_prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def whole_choice(self, part: ChoicePart) -> dict[str, Any]:
        ending = {"stop_reason": part.stop_reason, **self._prompt_logprobs(part)}
        return {**self._choice(part), **ending, **self._prompt_ids(part.index), **self._token_ids(part)}

    def chunk_choice(self, part: ChoicePart) -> dict[str, Any]:
        choice = self._choice(part)
        if part.finish_reason is not None:
            choice["stop_reason"] = part.stop_reason
        if part.index not in self._begun:
            self._begun.add(part.index)
            choice |= self._prompt_ids(part.index)
        return choice | self._token_ids(part)

    def _choice(self, part: ChoicePart) -> dict[str, Any]:
        count = self._output.logprobs
        logprobs = None if count is None else completion_logprobs(part.tokens, count, self._names)
        return {"index": part.index, "text": part.text, "logprobs": logprobs, "finish_reason": part.finish_reason}


async def prepare_completion(service: ServerContext, body: Mapping[str, Any]) -> Prepared:
    """Validate a completion request and tokenize its prompts. Raises ApiError."""
    parsed = COMPLETION_FIELDS.parse(body)
    service.require_model(parsed.values["model"])
    report = OutputOptions.from_values(parsed.values, parsed.values["logprobs"], parsed.values["echo"])
    options = SamplingOptions.from_values(parsed.values, service.backend.model, report)
    prompts = parsed.values["prompt"]
    await service.require_ready()  # before that the context's length may not be known
    _check_prompts(service, prompts, options)
    ids = await _tokenize(service, prompts, parsed.values["add_special_tokens"])
    return Prepared(ids, "prompt", options, DEFAULT_MAX_TOKENS, CompletionResponseBuilder, parsed.unknown)


def _check_prompts(service: ServerContext, prompts: Sequence[Prompt], options: SamplingOptions) -> None:
    if len(prompts) > service.limits.max_prompts:
        message = f"'prompt' must hold at most {service.limits.max_prompts} prompts; got {len(prompts)}."
        raise InvalidValueError(message, param="prompt")
    options.check_choices(len(prompts), service.limits)
    vocab_len = service.backend.model.vocab_len
    for prompt in prompts:
        if isinstance(prompt, str):
            if options.truncate_to is None:
                service.require_short(prompt, "prompt")
        elif not all(0 <= i < vocab_len for i in prompt):
            raise InvalidValueError(f"'prompt' must hold token ids from 0 to {vocab_len - 1}.", param="prompt")


async def _tokenize(service: ServerContext, prompts: Sequence[Prompt], add_special_tokens: bool) -> list[list[int]]:
    async def ids(prompt: Prompt) -> list[int]:
        return await service.backend.encode(prompt, add_special_tokens) if isinstance(prompt, str) else list(prompt)

    return list(await asyncio.gather(*map(ids, prompts)))
