"""Bounds on what one request, and all requests together, may ask for."""

from typing import Annotated, Literal

from pydantic import ByteSize, Field

from mpt_serve.configuration.setting_types import Count, Seconds, SettingsGroup, Size, not_boolean

__all__ = ["IGNORED_FIELDS_HEADER", "Limits"]

IGNORED_FIELDS_HEADER = "x-mpt-ignored-fields"  # of responses: what the request has that no endpoint knows


class Limits(SettingsGroup):
    """What one request, and all requests together, may ask for."""

    request_timeout_s: Seconds = Field(
        default=600.0,
        description="Seconds from a request's first byte to its response's last; then it ends with an error 504.",
    )
    replica_wait_s: Seconds = Field(
        default=60.0,
        description="Seconds that a request waits for a replica while the last one is being replaced (after a crash,"
        " or by a new version where two do not fit at once); then it is refused with 503 `loading`. A server that has"
        " never been ready refuses at once.",
    )
    first_token_wait_s: Seconds = Field(
        default=15.0,
        description="Seconds after which a stream begins without its first token, so that no proxy takes it for dead;"
        " an error before that keeps its own status.",
    )
    stream_interval_ms: Annotated[int, Field(ge=0, le=1000), not_boolean("an integer")] = Field(
        default=10,
        description="Milliseconds within which what a Generator replica's steps generate for a stream goes together, as"
        " one event, which leaves more of the processors to the model. A choice's first and last tokens do not wait,"
        " nor does what the next step would not join in that time; a stop string is found that much later. With many"
        " streams it is longer, so that those of a replica have 1,500 events a second together. 0: each token goes as"
        " soon as it comes. Without effect where tokens go through Serve, as with `RAY_USE_TLS`.",
    )
    keep_alive_s: Seconds = Field(default=15.0, description="Seconds of silence after which a stream sends a comment.")
    unknown_fields: Literal["ignore", "refuse"] = Field(
        default="ignore",
        description="What happens to fields that no endpoint knows. `ignore`: they have no effect, and the response's"
        f" header `{IGNORED_FIELDS_HEADER}` names them. `refuse`: an error 400 names the first.",
    )
    max_body_bytes: Size = Field(
        default=ByteSize(4 * 1024**2), description="Size of one request's body, such as `4MiB`; counted while reading."
    )
    body_timeout_s: Seconds = Field(
        default=30.0, description="Seconds in which a body must arrive; then the request ends with an error 408."
    )
    max_unread_bodies: Count = Field(
        default=256,
        description="Bodies that one Ingress replica reads at the same time. One more takes the place of the body whose"
        " client has been silent for longest, which gets an error 503.",
    )
    max_unread_body_bytes: Size = Field(
        default=ByteSize(64 * 1024**2),
        description="Size of all bodies that arrive or wait to be parsed in one Ingress replica; more are refused with"
        " 503.",
    )
    max_json_depth: Annotated[int, Field(ge=1, le=256), not_boolean("an integer")] = Field(
        default=32, description="Depth of a body's arrays and objects."
    )
    max_json_items: Count = Field(
        default=262_144,
        description="Elements and members of a body's arrays and objects, over all depths; an eighth of it may be"
        " members of objects.",
    )
    max_header_bytes: Size = Field(default=ByteSize(64 * 1024), description="Size of all headers together.")
    max_headers: Count = Field(default=256, description="Headers of one request.")
    max_prompts: Count = Field(default=128, description="Prompts in one /v1/completions request.")
    max_choices: Count = Field(
        default=256, description="Choices in one request: prompts times `n`, or times `best_of`."
    )
    max_inputs: Count = Field(
        default=1024,
        description="Inputs in one /v1/embeddings request, or texts to score in one of /v1/score or /v1/rerank.",
    )
    max_embedding_numbers: Count = Field(
        default=1_048_576,
        description="Numbers in one /v1/embeddings response: inputs, or tokens with `pooling` `none`, times the model's"
        " hidden size. Each takes about 20 bytes of the response, or 5 in base64.",
    )
    max_text_chars: Count = Field(
        default=524_288,
        description="Characters of all texts to tokenize in one request: prompts, messages, inputs, or the text of"
        " /tokenize."
        " `truncate_prompt_tokens` does not raise it.",
    )
    max_detokenize_tokens: Count = Field(default=262_144, description="Ids in one /detokenize request.")
    max_prompt_logprobs: Count = Field(
        default=262_144,
        description="Log probabilities of prompts in one response: tokens times choices times those of one token. Each"
        " takes about 60 bytes of the response.",
    )
    max_waiting_requests: Count = Field(
        default=256,
        description="Choices (one for each prompt, unless a request asks for more) that one Ingress replica keeps"
        " waiting or running, over all its Generator replicas. More are refused, before their bodies are read, with 503"
        " and a Retry-After header.",
    )
    max_waiting_prompt_tokens: Count = Field(
        default=262_144,
        description="Prompt tokens of those requests together; more are refused in the same way. A request that is"
        " alone is always admitted.",
    )
    max_waiting_texts: Count = Field(
        default=256,
        description="Requests to /tokenize and /detokenize that one Ingress replica works on; more are refused with 503"
        " and a Retry-After header.",
    )
