"""POST /v1/completions: text that continues a prompt."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpt_serve.openai.answer import Answer
from mpt_serve.openai.choice import ChoicePart
from mpt_serve.openai.errors import InvalidValueError
from mpt_serve.openai.fields import Fields, Offered, Refused
from mpt_serve.openai.generate import Prepared
from mpt_serve.openai.kinds import Boolean, String, json_type
from mpt_serve.openai.sampling import IGNORED_FIELDS, MODEL_FIELD, REFUSED_FIELDS, SAMPLING_FIELDS, SamplingOptions
from mpt_serve.openai.service import Service

__all__ = ["COMPLETION_FIELDS", "CompletionAnswer", "prepare_completion"]

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
        return InvalidValueError(f"'{where}' must be {self.takes}; got {came} of another content.", param=where)


COMPLETION_FIELDS = Fields(
    MODEL_FIELD,
    Offered("prompt", Prompts(), "What the text continues. Several prompts make several choices.", required=True),
    Offered("add_special_tokens", Boolean(), "Let the tokenizer add its own special tokens to text prompts.", True),
    *SAMPLING_FIELDS,
    Refused("best_of", "one choice is made for each prompt", (1,)),
    Refused("echo", "the prompt is not repeated in the text yet", (False,)),
    Refused("logprobs", "log probabilities are not returned yet"),
    Refused("suffix", "the models cannot fill in the middle", ("",)),
    Refused("prompt_embeds", "prompts are text or ids"),
    *REFUSED_FIELDS,
    *IGNORED_FIELDS,
)


class CompletionAnswer(Answer):
    id_prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def whole_choice(self, part: ChoicePart) -> dict[str, Any]:
        choice = {"index": part.index, "text": part.text, "logprobs": None, "finish_reason": part.finish_reason}
        return {**choice, "stop_reason": part.stop_reason, "prompt_logprobs": None}

    def chunk_choice(self, part: ChoicePart) -> dict[str, Any]:
        choice = {"index": part.index, "text": part.text, "logprobs": None, "finish_reason": part.finish_reason}
        return choice if part.finish_reason is None else {**choice, "stop_reason": part.stop_reason}


async def prepare_completion(service: Service, body: Mapping[str, Any]) -> Prepared:
    """Validate a completion request and tokenize its prompts. Raises ApiError."""
    parsed = COMPLETION_FIELDS.parse(body)
    service.require_model(parsed.values["model"])
    options = SamplingOptions.from_values(parsed.values, service.backend.model)
    prompts = parsed.values["prompt"]
    await service.require_ready()  # before that the context's length may not be known
    _check_prompts(service, prompts, options)
    ids = await _tokenize(service, prompts, parsed.values["add_special_tokens"])
    answer = CompletionAnswer(service.backend.model.id)
    return Prepared(ids, "prompt", options, DEFAULT_MAX_TOKENS, answer, parsed.unknown)


def _check_prompts(service: Service, prompts: Sequence[Prompt], options: SamplingOptions) -> None:
    if len(prompts) > service.limits.max_prompts:
        message = f"'prompt' must hold at most {service.limits.max_prompts} prompts; got {len(prompts)}."
        raise InvalidValueError(message, param="prompt")
    vocab_len = service.backend.model.vocab_len
    for prompt in prompts:
        if isinstance(prompt, str):
            if options.truncate_to is None:
                service.require_short(prompt, "prompt")
        elif not all(0 <= i < vocab_len for i in prompt):
            raise InvalidValueError(f"'prompt' must hold token ids from 0 to {vocab_len - 1}.", param="prompt")


async def _tokenize(service: Service, prompts: Sequence[Prompt], add_special_tokens: bool) -> list[list[int]]:
    async def ids(prompt: Prompt) -> list[int]:
        return await service.backend.encode(prompt, add_special_tokens) if isinstance(prompt, str) else list(prompt)

    return list(await asyncio.gather(*map(ids, prompts)))
