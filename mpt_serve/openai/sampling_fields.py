"""The table of the fields that completions and chat share: how tokens are chosen, when text stops, how it is sent."""

import re
from dataclasses import dataclass
from typing import Any

from mpt_serve.openai.errors import InvalidValueError
from mpt_serve.openai.fields import Field, Fields, Ignored, Offered, Refused
from mpt_serve.openai.guides import GUIDE_FIELDS
from mpt_serve.openai.kinds import Boolean, Choice, Integer, ListOf, Number, Object, OneOrMany, String
from mpt_serve.openai.output_options import REPORT_FIELDS

__all__ = ["IGNORED_FIELDS", "MODEL_FIELD", "REFUSED_FIELDS", "SAMPLING_FIELDS", "STREAM_OPTIONS"]

_ID = Integer(0, 2**31 - 1)
_BIAS = Number(-100, 100)
_MAX_BIASES = 1024
_KEY = re.compile("0|[1-9][0-9]{0,9}")


@dataclass(frozen=True)
class Biases:
    """Numbers by id; comes out as pairs."""

    takes: str = f"an object of at most {_MAX_BIASES} members: ids as strings, with {_BIAS.takes} each"

    def check(self, value: Any, where: str) -> tuple[tuple[int, float], ...]:
        members = Object(self.takes).check(value, where)
        if len(members) > _MAX_BIASES:
            raise InvalidValueError(f"'{where}' must be {self.takes}; got {len(members)}.", param=where)
        if not all(map(_KEY.fullmatch, members)):
            raise InvalidValueError(f"'{where}' must be {self.takes}; got a name that is no id.", param=where)
        return tuple((int(key), _BIAS.check(bias, f"{where}.{key}")) for key, bias in members.items())


MODEL_FIELD = Offered(
    "model", String(256), "The model's id, as `/v1/models` lists it.", shown_default="the served model"
)

_CHOOSING: tuple[Field, ...] = (
    Offered("n", Integer(1, 128), "Choices for each prompt, which is read once. The i-th of prompt p is p x n + i.", 1),
    Offered("temperature", Number(0, 2), "Spread of the choice of tokens; 0 always takes the likeliest.", 1.0),
    Offered("top_p", Number(0, 1, above_low=True), "Keep the likeliest tokens that together reach it.", 1.0),
    Offered("top_k", Integer(-1, 2**31 - 1), "Keep so many of the likeliest tokens; 0 and -1 keep all.", 0),
    Offered("min_p", Number(0, 1), "Drop tokens less likely than this share of the likeliest one's probability.", 0.0),
    Offered(
        "repetition_penalty",
        Number(0, 10, above_low=True),
        "Divides the positive logits, and multiplies the negative ones, of tokens in prompt or answer.",
        1.0,
    ),
    Offered("presence_penalty", Number(-2, 2), "Taken off the logits of tokens that the answer has.", 0.0),
    Offered("frequency_penalty", Number(-2, 2), "The same, once for each time that the answer has the token.", 0.0),
    Offered("logit_bias", Biases(), "Added to the logits of these tokens.", (), shown_default="none"),
    Offered("allowed_token_ids", ListOf(_ID, 262_144, may_be_empty=False), "No other token.", shown_default="all"),
    Offered(
        "bad_words",
        ListOf(String(256, may_be_empty=False), 128),
        "The tokens that spell these words, with and without a space before them, never follow each other.",
        (),
        shown_default="none",
    ),
    Offered(
        "seed",
        Integer(-(2**63), 2**63 - 1),
        "The same seed and request give the same text, whatever else the server does; each choice has its own numbers.",
        shown_default="drawn anew",
    ),
)

_ENDING: tuple[Field, ...] = (
    Offered(
        "stop",
        OneOrMany(String(256, may_be_empty=False), 16),
        "The text ends before the first of these strings.",
        (),
        shown_default="none",
    ),
    Offered(
        "stop_token_ids",
        ListOf(_ID, 128),
        "Generation ends at the first of these ids; its text is left out.",
        (),
        shown_default="none",
    ),
    Offered(
        "include_stop_str_in_output", Boolean(), "Keep the stop string, or the stop id's text, in the text.", False
    ),
    Offered("min_tokens", Integer(0, 2**31 - 1), "Nothing ends the text before so many tokens.", 0),
    Offered("ignore_eos", Boolean(), "Go on after the model's own end of text.", False),
)

_SENDING: tuple[Field, ...] = (
    Offered("skip_special_tokens", Boolean(), "Leave special tokens such as `<|endoftext|>` out of the text.", True),
    Offered(
        "truncate_prompt_tokens",
        Integer(-1, 2**31 - 1),
        "Cut a longer prompt to so many tokens; -1 cuts to what fits beside `max_tokens`, or beside its default (in"
        " chat a quarter of the context).",
        shown_default="never cut",
    ),
    Offered("truncation_side", Choice(("left", "right")), "The side that the cut takes tokens from.", "left"),
    Offered("stream", Boolean(), "Send the text as it is made, as server-sent events.", False),
    Offered("stream_options", Object(), "See below; only with `stream`."),
    Offered(
        "priority",
        Integer(-1000, 1000),
        "Lower goes first: each unit is worth 16 places in the queue.",
        0,
    ),
    Offered(
        "cache_salt",
        String(256, may_be_empty=False),
        "Cached prompts are shared only between requests with the same salt.",
        "",
        shown_default="shared by all without one",
    ),
)

SAMPLING_FIELDS: tuple[Field, ...] = (*_CHOOSING, *_ENDING, *GUIDE_FIELDS, *REPORT_FIELDS, *_SENDING)

STREAM_OPTIONS = Fields(
    Offered("include_usage", Boolean(), "Send one more chunk, without choices, that carries the usage.", False),
    Offered("continuous_usage_stats", Boolean(), "With `include_usage`: every chunk carries the usage so far.", False),
    Ignored("include_obfuscation", Boolean(), "Chunks carry no padding here."),
)

# Fields of other servers that change the text: a request that has one must not be answered as if it had none.
_OTHER_GUIDE_NAMES = {"regex": "regex", "ebnf": "grammar", "grammar": "grammar", "json_schema": "json"}
_OTHER_FILTERS: dict[str, tuple[int, ...]] = {
    "mirostat": (0,),
    "typical_p": (1,),
    "tfs_z": (1,),
    "xtc_probability": (0,),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
}

REFUSED_FIELDS: tuple[Field, ...] = (
    Refused("logprob_token_ids", "log probabilities come of the token itself and of the likeliest ones"),
    Refused("logits_processors", "requests bring no code"),
    Refused("use_beam_search", "tokens are sampled, not searched for", (False,)),
    Refused("length_penalty", "it belongs to beam search, which is not offered", (1,)),
    Refused("spaces_between_special_tokens", "text is decoded without spaces of its own", (True,)),
    *(Refused(name, f"`structured_outputs` takes a {kind}") for name, kind in _OTHER_GUIDE_NAMES.items()),
    Refused("stop_regex", "`stop` takes strings"),
    Refused("no_stop_trim", "`include_stop_str_in_output` keeps the stop string", (False,)),
    *(Refused(name, "the name here is `max_tokens`") for name in ("n_predict", "max_new_tokens")),
    Refused("min_new_tokens", "the name here is `min_tokens`", (0,)),
    Refused("repeat_penalty", "the name here is `repetition_penalty`", (1,)),
    *(Refused(name, "`top_p`, `top_k` and `min_p` filter tokens", off) for name, off in _OTHER_FILTERS.items()),
    Refused("lora_path", "the server has one model, without adapters"),
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
