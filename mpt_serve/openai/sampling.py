"""The fields that completions and chat share, checked against each other and made into the engine's parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpt_serve.configuration.limits import Limits
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.openai.backend import ModelInfo
from mpt_serve.openai.errors import ContextLengthError, InvalidValueError
from mpt_serve.openai.fields import Parsed
from mpt_serve.openai.guides import guide_from
from mpt_serve.openai.output_options import OutputOptions
from mpt_serve.openai.sampling_fields import STREAM_OPTIONS
from mpt_serve.structured_outputs.spec import GrammarSpec

__all__ = ["SamplingOptions"]

# Smaller temperatures are as good as greedy, and smaller penalties overflow a division in float32. Of a smaller share
# of the probability the likeliest token alone is more.
LEAST = 1e-5

# Fields that are the engine's parameters as they are.
_PLAIN = (
    *("min_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "ignore_eos", "stop_token_ids", "logit_bias"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "allowed_token_ids", "priority", "cache_salt"),
)


@dataclass(frozen=True)
class SamplingOptions:
    """The shared fields of one request; the prompt's length comes later.

    n: choices in the answer for each prompt. best_of: choices that are made for each, at least n.
    guide_param: the field that the guide came from.
    """

    max_tokens: int | None  # as asked for
    n: int
    best_of: int
    sampling: Mapping[str, Any]  # SamplingParams' other fields
    guide: GrammarSpec | None
    guide_param: str | None
    bad_words: tuple[str, ...]
    report: OutputOptions
    stop: tuple[str, ...]
    include_stop: bool
    skip_special_tokens: bool
    truncate_to: int | None
    truncation_side: str
    stream: bool
    include_usage: bool
    continuous_usage: bool
    unknown: tuple[str, ...]  # stream options that nobody knows

    @classmethod
    def from_values(cls, values: Mapping[str, Any], model: ModelInfo, report: OutputOptions) -> "SamplingOptions":
        """Build from parsed fields. Raises InvalidValueError."""
        _check_ids(values, model.vocab_len)
        if values["truncate_prompt_tokens"] == 0:
            message = "'truncate_prompt_tokens' must be at least 1, or -1 for what fits."
            raise InvalidValueError(message, param="truncate_prompt_tokens")
        if any(not word.strip(" ") for word in values["bad_words"]):
            raise InvalidValueError("'bad_words' must not hold nothing but spaces.", param="bad_words")
        options = _stream_options(values)
        guide, guide_param = guide_from(values)
        if guide is not None and values["ignore_eos"]:
            message = f"'ignore_eos' and '{guide_param}' exclude each other: a guided answer ends where its text does."
            raise InvalidValueError(message, param="ignore_eos")
        return cls(
            max_tokens=_max_tokens(values),
            n=values["n"],
            best_of=_best_of(values),
            sampling=_sampling(values),
            guide=guide,
            guide_param=guide_param,
            bad_words=values["bad_words"],
            report=report,
            stop=values["stop"],
            include_stop=values["include_stop_str_in_output"],
            skip_special_tokens=values["skip_special_tokens"],
            truncate_to=values["truncate_prompt_tokens"],
            truncation_side=values["truncation_side"],
            stream=values["stream"],
            include_usage=options.values["include_usage"],
            continuous_usage=options.values["include_usage"] and options.values["continuous_usage_stats"],
            unknown=options.unknown,
        )

    def check_choices(self, prompts: int, limits: Limits) -> None:
        """Raise InvalidValueError for more choices than one request may have."""
        if prompts * self.best_of > limits.max_choices:
            param = "best_of" if self.best_of > self.n else "n"
            message = f"'{param}' must not make more than {limits.max_choices} choices, over {prompts} prompts."
            raise InvalidValueError(message, param=param)

    def fit(self, ids: list[int], model: ModelInfo, default_max_tokens: int | None, param: str) -> list[int]:
        """Return the prompt, cut if the request asks for that. Raises ContextLengthError if it does not fit."""
        keep = self.truncate_to
        if keep == -1:
            default = default_max_tokens or model.max_model_len // 4
            keep = max(1, model.max_model_len - (default if self.max_tokens is None else self.max_tokens))
        if keep is not None and keep < len(ids):
            ids = ids[-keep:] if self.truncation_side == "left" else ids[:keep]
        if not ids:
            raise InvalidValueError(f"'{param}' is empty: there is no token to continue.", param=param)
        if len(ids) + self._least_tokens > model.max_model_len:
            raise _too_long(len(ids), self.max_tokens, model.max_model_len, param)
        return ids

    def max_tokens_for(self, prompt_tokens: int, model: ModelInfo, default_max_tokens: int | None) -> int:
        """Return the tokens that may be generated for a prompt that fits.

        `default_max_tokens` is what an omitted `max_tokens` means where the context leaves so much; None takes all.
        """
        room = model.max_model_len - prompt_tokens
        return min(room, default_max_tokens or room) if self.max_tokens is None else self.max_tokens

    def params(self, max_tokens: int, bad_words: tuple[tuple[int, ...], ...] = ()) -> SamplingParams:
        """Return the engine's parameters, with `bad_words` as ids. Raises InvalidValueError."""
        if self.sampling["min_tokens"] > max_tokens:
            message = f"'min_tokens' must not be above the tokens that may be generated, here {max_tokens}."
            raise InvalidValueError(message, param="min_tokens")
        ranking = 0 if self.best_of > self.n else None
        return SamplingParams(
            **self.sampling,
            max_tokens=max_tokens,
            n=self.best_of,
            bad_words=bad_words,
            logprobs=ranking if self.report.logprobs is None else self.report.logprobs,
            prompt_logprobs=self.report.engine_prompt_logprobs,
        )

    @property
    def _least_tokens(self) -> int:
        """Tokens that the context must have beside the prompt."""
        return 1 if self.max_tokens is None else self.max_tokens


def _check_ids(values: Mapping[str, Any], vocab_len: int) -> None:
    ids = {
        "stop_token_ids": values["stop_token_ids"],
        "allowed_token_ids": values["allowed_token_ids"] or (),
        "logit_bias": [token_id for token_id, _ in values["logit_bias"]],
    }
    for name, own in ids.items():
        if any(token_id >= vocab_len for token_id in own):
            raise InvalidValueError(f"'{name}' must have ids of the tokenizer, below {vocab_len}.", param=name)


def _max_tokens(values: Mapping[str, Any]) -> int | None:
    old, new = values["max_tokens"], values["max_completion_tokens"]
    if old is not None and new is not None and old != new:
        message = "'max_completion_tokens' and 'max_tokens' differ: send one of them."
        raise InvalidValueError(message, param="max_completion_tokens")
    max_tokens: int | None = old if old is not None else new
    return max_tokens


def _best_of(values: Mapping[str, Any]) -> int:
    n: int = values["n"]
    best_of: int = values.get("best_of") or n
    if best_of < n:
        raise InvalidValueError(f"'best_of' must not be below 'n', here {n}.", param="best_of")
    if best_of > n and values["stream"]:
        message = "'best_of' above 'n' comes only without 'stream': which are best shows at the end."
        raise InvalidValueError(message, param="best_of")
    return best_of


def _sampling(values: Mapping[str, Any]) -> dict[str, Any]:
    sampling = {name: values[name] for name in _PLAIN}
    if sampling["temperature"] < LEAST:
        sampling["temperature"] = 0.0
    sampling["top_p"] = max(LEAST, sampling["top_p"])
    sampling["repetition_penalty"] = max(LEAST, sampling["repetition_penalty"])
    sampling["top_k"] = max(0, sampling["top_k"])
    return sampling


def _stream_options(values: Mapping[str, Any]) -> Parsed:
    options = values["stream_options"]
    if options is not None and not values["stream"]:
        raise InvalidValueError("'stream_options' needs 'stream': true.", param="stream_options")
    return STREAM_OPTIONS.parse(options or {}, "stream_options.")


def _too_long(prompt_tokens: int, max_tokens: int | None, limit: int, param: str) -> ContextLengthError:
    asked = "at least 1 token" if max_tokens is None else f"max_tokens = {max_tokens}"
    least = 1 if max_tokens is None else max_tokens
    return ContextLengthError(
        f"The prompt has {prompt_tokens} tokens; with {asked} to generate that is more than the context of {limit}"
        f" tokens. Send at most {max(0, limit - least)} prompt tokens, or a smaller max_tokens, or set"
        " truncate_prompt_tokens.",
        param=param,
    )
