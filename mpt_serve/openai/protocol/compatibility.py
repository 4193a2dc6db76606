"""Fields of OpenAI's API and of other servers that are refused by name, or accepted without effect."""

from typing import Any

from pydantic import Field
from pydantic.config import JsonDict

from mpt_serve.openai.protocol.request_model import Refused, RequestModel

__all__ = ["IGNORED", "NO_NAMED_LOGPROBS", "REFUSED_FIELDS", "IgnoredFields", "UnusedFields"]

IGNORED: JsonDict = {"x-ignored": True}  # the extra in the schema of a field that is checked and then has no effect

_FILTER_NAMES: dict[str, tuple[int, ...]] = {
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "typical_p": (1,),
    "tfs_z": (1,),
    "top_n_sigma": (0, -1),
    "xtc_probability": (0,),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
}

NO_NAMED_LOGPROBS = Refused(
    "logprob_token_ids", "here log probabilities are those of the token itself and of the most likely ones"
)

# They change the text: a request that has one must not get a response as if it had none.
REFUSED_FIELDS = (
    Refused("logits_processors", "requests bring no code"),
    Refused("use_beam_search", "tokens are sampled, not searched for", (False,)),
    Refused("length_penalty", "it belongs to beam search, which is not offered", (1,)),
    Refused("spaces_between_special_tokens", "the detokenizer adds no spaces", (True,)),
    Refused("stop_regex", "`stop` takes strings"),
    Refused("no_stop_trim", "`include_stop_str_in_output` keeps the stop string", (False,)),
    *(Refused(name, "use `max_tokens`") for name in ("n_predict", "max_new_tokens")),
    Refused("min_new_tokens", "use `min_tokens`", (0,)),
    Refused("repeat_penalty", "use `repetition_penalty`", (1,)),
    *(Refused(name, "`top_p`, `top_k` and `min_p` filter tokens", neutral) for name, neutral in _FILTER_NAMES.items()),
    Refused("lora_path", "the server has one model, without adapters"),
)


class UnusedFields(RequestModel):
    """Fields of OpenAI's APIs that are checked and then have no effect, because nothing here depends on them."""

    user: str | None = Field(None, max_length=1024, description="Nothing is kept by user.", json_schema_extra=IGNORED)
    service_tier: str | None = Field(None, max_length=64, description="There is one tier.", json_schema_extra=IGNORED)
    safety_identifier: str | None = Field(
        None, max_length=1024, description="Nothing is kept by user.", json_schema_extra=IGNORED
    )
    prompt_cache_key: str | None = Field(
        None, max_length=1024, description="Prompts are cached by their tokens.", json_schema_extra=IGNORED
    )
    prompt_cache_retention: str | None = Field(
        None, max_length=64, description="Prompts stay cached while there is capacity.", json_schema_extra=IGNORED
    )


class IgnoredFields(UnusedFields):
    """Those of completions and chat."""

    metadata: dict[str, Any] | None = Field(None, description="Nothing is stored.", json_schema_extra=IGNORED)
    store: bool | None = Field(None, description="Nothing is stored.", json_schema_extra=IGNORED)
