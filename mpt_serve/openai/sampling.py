"""The fields that completions and chat share: how tokens are chosen, when text stops, how it is sent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.openai.backend import ModelInfo
from mpt_serve.openai.errors import ContextLengthError, InvalidValueError
from mpt_serve.openai.fields import Field, Fields, Ignored, Offered, Parsed, Refused
from mpt_serve.openai.kinds import Boolean, Choice, Integer, ListOf, Number, Object, OneOrMany, String

__all__ = ["IGNORED_FIELDS", "MODEL_FIELD", "REFUSED_FIELDS", "SAMPLING_FIELDS", "SamplingOptions"]

TOKEN_COUNT = Integer(1, 2**31 - 1)
GREEDY_BELOW = 1e-5  # temperatures below it overflow a division in float32, and are as good as greedy

MODEL_FIELD = Offered(
    "model", String(256), "The model's id, as `/v1/models` lists it.", shown_default="the served model"
)

SAMPLING_FIELDS: tuple[Field, ...] = (
    Offered(
        "max_tokens",
        TOKEN_COUNT,
        "Generated tokens at most. More than the context leaves beside the prompt is an error.",
        shown_default="completions: 16, or what the context leaves; chat: what the context leaves",
    ),
    Offered("max_completion_tokens", TOKEN_COUNT, "The newer name of `max_tokens`; both must agree."),
    Offered("temperature", Number(0, 2), "Spread of the choice of tokens; 0 always takes the likeliest.", 1.0),
    Offered("top_p", Number(0, 1, above_low=True), "Keep the likeliest tokens that together reach it.", 1.0),
    Offered("top_k", Integer(-1, 2**31 - 1), "Keep so many of the likeliest tokens; 0 and -1 keep all.", 0),
    Offered("min_p", Number(0, 1), "Drop tokens less likely than this share of the likeliest one's probability.", 0.0),
    Offered(
        "seed",
        Integer(-(2**63), 2**63 - 1),
        "The same seed and request give the same text, whatever else the server does.",
        shown_default="drawn anew",
    ),
    Offered(
        "stop",
        OneOrMany(String(256, may_be_empty=False), 16),
        "The text ends before the first of these strings.",
        (),
        shown_default="none",
    ),
    Offered(
        "stop_token_ids",
        ListOf(Integer(0, 2**31 - 1), 128),
        "Generation ends at the first of these ids; its text is left out.",
        (),
        shown_default="none",
    ),
    Offered(
        "include_stop_str_in_output", Boolean(), "Keep the stop string, or the stop id's text, in the text.", False
    ),
    Offered("min_tokens", Integer(0, 2**31 - 1), "Nothing ends the text before so many tokens.", 0),
    Offered("ignore_eos", Boolean(), "Go on after the model's own end of text.", False),
    Offered("skip_special_tokens", Boolean(), "Leave special tokens such as `<|endoftext|>` out of the text.", True),
    Offered(
        "truncate_prompt_tokens",
        Integer(-1, 2**31 - 1),
        "Cut a longer prompt to so many tokens; -1 cuts to what fits beside `max_tokens`.",
        shown_default="never cut",
    ),
    Offered("truncation_side", Choice(("left", "right")), "The side that the cut takes tokens from.", "left"),
    Offered("stream", Boolean(), "Send the text as it is made, as server-sent events.", False),
    Offered("stream_options", Object(), "See below; only with `stream`."),
)

STREAM_OPTIONS = Fields(
    Offered("include_usage", Boolean(), "Send one more chunk, without choices, that carries the usage.", False),
    Offered("continuous_usage_stats", Boolean(), "With `include_usage`: every chunk carries the usage so far.", False),
    Ignored("include_obfuscation", Boolean(), "Chunks carry no padding here."),
)

REFUSED_FIELDS: tuple[Field, ...] = (
    Refused("n", "one choice is made for each prompt; send the request again for another", (1,)),
    Refused("top_logprobs", "log probabilities are not returned yet", (0,)),
    Refused("prompt_logprobs", "log probabilities are not returned yet"),
    Refused("presence_penalty", "penalties are not applied yet", (0,)),
    Refused("frequency_penalty", "penalties are not applied yet", (0,)),
    Refused("repetition_penalty", "penalties are not applied yet", (1,)),
    Refused("logit_bias", "logits are not biased yet", ({},)),
    Refused("bad_words", "tokens cannot be forbidden yet", ([],)),
    Refused("allowed_token_ids", "tokens cannot be restricted yet"),
    Refused("logprob_token_ids", "log probabilities are not returned yet"),
    Refused("response_format", "output cannot be constrained yet; only text", ({"type": "text"},)),
    Refused("structured_outputs", "output cannot be constrained yet"),
    Refused("guided_json", "output cannot be constrained yet"),
    Refused("guided_regex", "output cannot be constrained yet"),
    Refused("guided_choice", "output cannot be constrained yet"),
    Refused("guided_grammar", "output cannot be constrained yet"),
    Refused("use_beam_search", "tokens are sampled, not searched for", (False,)),
    Refused("length_penalty", "it belongs to beam search, which is not offered", (1,)),
    Refused("return_token_ids", "ids are not returned yet", (False,)),
    Refused("return_tokens_as_token_ids", "log probabilities are not returned yet", (False,)),
    Refused("spaces_between_special_tokens", "text is decoded without spaces of its own", (True,)),
    Refused("priority", "requests are served in the order of their arrival", (0,)),
    Refused("cache_salt", "caches cannot be kept apart by request yet"),
)

IGNORED_FIELDS: tuple[Field, ...] = (
    Ignored("user", String(1024), "Nothing is kept by user."),
    Ignored("metadata", Object(), "Nothing is stored."),
    Ignored("store", Boolean(), "Nothing is stored."),
    Ignored("service_tier", String(64), "There is one tier."),
    Ignored("safety_identifier", String(1024), "Nothing is kept by user."),
    Ignored("prompt_cache_key", String(1024), "Prompts are cached by their tokens."),
    Ignored("prompt_cache_retention", String(64), "Prompts stay cached while there is room."),
)


@dataclass(frozen=True)
class SamplingOptions:
    """The shared fields of one request, checked against each other; the prompt's length comes later."""

    max_tokens: int | None  # as asked for
    sampling: Mapping[str, Any]  # SamplingParams' other fields
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
    def from_values(cls, values: Mapping[str, Any], model: ModelInfo) -> "SamplingOptions":
        """Build from parsed fields. Raises InvalidValueError."""
        if any(i >= model.vocab_len for i in values["stop_token_ids"]):
            message = f"'stop_token_ids' must be ids of the tokenizer, below {model.vocab_len}."
            raise InvalidValueError(message, param="stop_token_ids")
        if values["truncate_prompt_tokens"] == 0:
            message = "'truncate_prompt_tokens' must be at least 1, or -1 for what fits."
            raise InvalidValueError(message, param="truncate_prompt_tokens")
        options = _stream_options(values)
        return cls(
            max_tokens=_max_tokens(values),
            sampling=_sampling(values),
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

    def fit(self, ids: list[int], model: ModelInfo, param: str) -> list[int]:
        """Return the prompt, cut if the request asks for that. Raises ContextLengthError if it does not fit."""
        if self.truncate_to is not None:
            keep = model.max_model_len - (self.max_tokens or 1) if self.truncate_to == -1 else self.truncate_to
            if 0 < keep < len(ids):
                ids = ids[-keep:] if self.truncation_side == "left" else ids[:keep]
        if not ids:
            raise InvalidValueError(f"'{param}' is empty: there is no token to continue.", param=param)
        if len(ids) + (self.max_tokens or 1) > model.max_model_len:
            raise _too_long(len(ids), self.max_tokens, model.max_model_len, param)
        return ids

    def params(self, prompt_tokens: int, model: ModelInfo, default_max_tokens: int | None) -> SamplingParams:
        """Return the engine's parameters for a prompt that fits. Raises InvalidValueError.

        `default_max_tokens` is what an omitted `max_tokens` means where the context leaves so much; None takes all.
        """
        room = model.max_model_len - prompt_tokens
        max_tokens = self.max_tokens or min(room, default_max_tokens or room)
        if self.sampling["min_tokens"] > max_tokens:
            message = f"'min_tokens' must not be above the tokens that may be generated, here {max_tokens}."
            raise InvalidValueError(message, param="min_tokens")
        return SamplingParams(**self.sampling, max_tokens=max_tokens)


def _max_tokens(values: Mapping[str, Any]) -> int | None:
    old, new = values["max_tokens"], values["max_completion_tokens"]
    if old is not None and new is not None and old != new:
        message = "'max_completion_tokens' and 'max_tokens' differ: send one of them."
        raise InvalidValueError(message, param="max_completion_tokens")
    max_tokens: int | None = old if old is not None else new
    return max_tokens


def _sampling(values: Mapping[str, Any]) -> dict[str, Any]:
    temperature = values["temperature"]
    return {
        "min_tokens": values["min_tokens"],
        "temperature": 0.0 if temperature < GREEDY_BELOW else temperature,
        "top_k": max(0, values["top_k"]),
        "top_p": values["top_p"],
        "min_p": values["min_p"],
        "seed": values["seed"],
        "stop_token_ids": values["stop_token_ids"],
        "ignore_eos": values["ignore_eos"],
    }


def _stream_options(values: Mapping[str, Any]) -> Parsed:
    options = values["stream_options"]
    if options is not None and not values["stream"]:
        raise InvalidValueError("'stream_options' needs 'stream': true.", param="stream_options")
    return STREAM_OPTIONS.parse(options or {}, "stream_options.")


def _too_long(prompt_tokens: int, max_tokens: int | None, limit: int, param: str) -> ContextLengthError:
    asked = "at least 1 token" if max_tokens is None else f"max_tokens = {max_tokens}"
    return ContextLengthError(
        f"The prompt has {prompt_tokens} tokens; with {asked} to generate that is more than the context of {limit}"
        f" tokens. Send at most {max(0, limit - (max_tokens or 1))} prompt tokens, or a smaller max_tokens, or set"
        " truncate_prompt_tokens.",
        param=param,
    )
