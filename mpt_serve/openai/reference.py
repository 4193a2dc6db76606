"""docs/api.md, made from the tables that the routes work with."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from mpt_serve.configuration.limits import Limits
from mpt_serve.configuration.reference import default_text
from mpt_serve.openai.chat import CHAT_FIELDS
from mpt_serve.openai.completions import COMPLETION_FIELDS
from mpt_serve.openai.errors import ERROR_KINDS, NotReadyError
from mpt_serve.openai.fields import Field, Fields, Ignored, Offered, Refused
from mpt_serve.openai.messages import CONVERSATION_FIELDS, MESSAGE_FIELDS
from mpt_serve.openai.sampling_fields import IGNORED_FIELDS, REFUSED_FIELDS, SAMPLING_FIELDS, STREAM_OPTIONS
from mpt_serve.openai.tokenize import DETOKENIZE_FIELDS, TOKENIZE_CHAT_FIELDS, TOKENIZE_FIELDS

__all__ = ["render_reference"]

_INTRODUCTION = """\
# HTTP API

Written by `python -m mpt_serve.openai.reference > docs/api.md` from the tables that the server checks requests with.

| endpoint | answers with |
|---|---|
| `POST /v1/completions` | text that continues one prompt or several, whole or as server-sent events |
| `POST /v1/chat/completions` | the assistant's next message; needs a model with a chat template |
| `GET /v1/models`, `GET /v1/models/{id}` | the served model, with `max_model_len` and `root` |
| `POST /tokenize` | ids of a `prompt`, or of `messages`: `{"count", "max_model_len", "tokens", "token_strs"}` |
| `POST /detokenize` | text of `tokens`: `{"prompt"}` |
| `GET /health` | 200 while the process lives |
| `GET /ready` | 200 while there are replicas that serve requests, else 503 |
| `GET /version` | the program's version |
| `GET /stats` | each Generator replica's counters: requests running and waiting, cache blocks, tokens, preemptions |
| `GET /metrics` | the same for Prometheus; `docs/metrics.md` lists it |

Bodies are JSON objects in UTF-8, sent as `application/json`. In every field `null` means the same as leaving it out.
A field that is in no table below changes nothing: the answer's header `x-mpt-ignored-fields` names it. Every answer
carries the `x-request-id` that its request had, or a new one; logs show a request's own only where it matches
`[A-Za-z0-9_.-]{1,128}`. No key is asked for: whoever reaches the port may ask. A request's own header
`x-request-timeout-seconds` is Serve's: when that time is over, Serve ends the answer without an error of this API.
"""

_CHOOSING = """\
The order of things that change how a token is chosen: the tokens that may come (the guide's, `allowed_token_ids`,
`bad_words`, no stop ids before `min_tokens`), `logit_bias`, `repetition_penalty`, `frequency_penalty`,
`presence_penalty`, then either the likeliest token, or `temperature`, `min_p`, `top_k`, `top_p` and the draw. Where the
first would leave no token, the later of them gives way, but never a guide.

Choices are numbered prompt by prompt: the i-th choice of prompt p has the index p x `n` + i. `best_of` above `n` makes
so many choices and answers with the `n` of the highest mean log probability over all their tokens (of equal ones the
earlier), the best first; it comes only without `stream`. `usage` counts each prompt once, and the tokens of every
choice that was made.

One of `response_format`, `structured_outputs` and the `guided_` fields says what the answer must match. What cannot be
compiled, or takes too long to compile, is an error 400 with the field as its `param`; a 503 when too many others are
being compiled.
"""

_TOKENS = """\
## Tokens and log probabilities

Log probabilities are natural logarithms of the model's own probabilities, before everything that changes how tokens are
chosen. A token has the same number wherever an answer shows it; -9999 stands for minus infinity.

The `logprobs` of a completion are four lists with an entry for each token: `tokens`, `token_logprobs`, `top_logprobs`
(an object with the token itself and the likeliest ones, so many as were asked for) and `text_offset`, the characters
of `text` before the token; for part of a character, those before the character. With `echo` the prompt's tokens come
first; the first of all has null twice. In chat it is `{"content": [{"token", "logprob", "bytes", "top_logprobs"}],
"refusal": null}`, where `top_logprobs` holds the likeliest tokens, and the token itself when it is none of them.

Every generated token has its entry, the one that ended the text included. A stop string ends the entries as it ends the
text: what is left are the tokens that begin before the text's end. In a stream each token comes with the chunk that
completes its text: tokens inside a character, without text of their own or in what may become a stop string wait.

A token is named by its text. Bytes that are no UTF-8 by themselves are named `bytes:` and the bytes, as in
`bytes:\\xf0\\x9f`; an id without text is `token_id:` and the id, as are all with `return_tokens_as_token_ids`. Of two
ids with the same text in one `top_logprobs` object, the less likely one is `token_id:` and the id, too, unless it is
the token itself.

`prompt_logprobs` comes with each completion choice, and beside the choices in chat: a list with null for the prompt's
first token and, for each other, an object by id of `{"logprob", "rank", "decoded_token"}`. `return_token_ids` adds
`token_ids` to each choice or chunk, with the ids that have entries as above, and `prompt_token_ids`: to each completion
choice or its first chunk, and beside the choices in chat.
"""

_STREAMS = """\
## Streams

With `"stream": true` the answer is `text/event-stream`: one `data:` line of JSON for each chunk, then `data: [DONE]`.
The status is sent with the first token, or when `first_token_wait_s` is over, so an error before that keeps its own
status; a later one comes as `data: {"error": {...}}` before `data: [DONE]`. Chunks hold whole UTF-8 characters and
never part of a stop string. A chat stream begins with the delta `{"role": "assistant", "content": ""}`. The last chunk
of a choice has its `finish_reason`: `stop` (end of text, a stop string or a stop id; `stop_reason` holds the string or
id) or `length`. While nothing comes the server sends comments, `: keep-alive`. A client that leaves ends its request.

`stream_options`:
"""

_ERRORS = """\
## Errors

Always `{"error": {"message", "type", "param", "code"}}`; `param` is the field's path or null. 503 passes by itself and
carries `Retry-After` in seconds.
"""


def render_reference() -> str:
    """Return the whole of docs/api.md."""
    shared = {field.name for field in (*SAMPLING_FIELDS, *REFUSED_FIELDS, *IGNORED_FIELDS)}
    parts = [
        _INTRODUCTION,
        "## POST /v1/completions\n",
        *_tables(field for field in COMPLETION_FIELDS.rows if field.name not in shared),
        "## POST /v1/chat/completions\n",
        *_tables(field for field in CHAT_FIELDS.rows if field.name not in shared),
        "Each of the `messages`:\n",
        *_tables(MESSAGE_FIELDS.rows),
        "## Fields of both\n",
        *_tables((*SAMPLING_FIELDS, *REFUSED_FIELDS, *IGNORED_FIELDS)),
        _CHOOSING,
        _TOKENS,
        _STREAMS,
        *_tables(STREAM_OPTIONS.rows),
        "## POST /tokenize\n",
        "Either a text:\n",
        *_tables(TOKENIZE_FIELDS.rows),
        "or a conversation, with the fields that chat has for it:\n",
        *_tables(_without(TOKENIZE_CHAT_FIELDS, CONVERSATION_FIELDS)),
        "## POST /detokenize\n",
        *_tables(DETOKENIZE_FIELDS.rows),
        _ERRORS,
        *_errors(),
        "## Bounds\n",
        "`docs/settings.md` lists which of them can be set.\n",
        *_limits(),
    ]
    return "\n".join(parts)


def _without(fields: Fields, others: Iterable[Field]) -> list[Field]:
    names = {field.name for field in others}
    return [field for field in fields.rows if field.name not in names]


def _tables(fields: Iterable[Field]) -> Iterator[str]:
    rows = tuple(fields)
    offered = [_offered(field) for field in rows if isinstance(field, Offered)]
    refused = [_refused(field) for field in rows if isinstance(field, Refused)]
    ignored = [_ignored(field) for field in rows if isinstance(field, Ignored)]
    if offered:
        yield _table("| field | takes | default | meaning |\n|---|---|---|---|", offered)
    if refused:
        yield _table("| not offered, answered with 400 | unless it is | because |\n|---|---|---|", refused)
    if ignored:
        yield _table("| accepted without effect | takes | because |\n|---|---|---|", ignored)


def _table(head: str, rows: list[str]) -> str:
    return "\n".join([head, *rows, ""])


def _offered(field: Offered) -> str:
    default = "required" if field.required else field.shown_default or _json(field.default)
    meaning = field.meaning.replace("|", "\\|")  # a bar would end the cell
    return f"| `{field.name}` | {field.kind.takes} | {default} | {meaning} |"


def _refused(field: Refused) -> str:
    neutral = " or ".join(["`null`", *(_json(value) for value in field.neutral)])
    return f"| `{field.name}` | {neutral} | {field.why} |"


def _ignored(field: Ignored) -> str:
    return f"| `{field.name}` | {field.kind.takes} | {field.meaning} |"


def _json(value: Any) -> str:
    return f"`{json.dumps(value)}`"


def _errors() -> Iterator[str]:
    rows = []
    for kind in ERROR_KINDS:
        codes = NotReadyError.CODES if kind is NotReadyError else (kind.code,)
        rows.append(f"| {kind.status} | `{kind.type}` | {', '.join(f'`{code}`' for code in codes)} | {kind.__doc__} |")
    yield _table("| status | `type` | `code` | when |\n|---|---|---|---|", rows)


def _limits() -> Iterator[str]:
    fields = Limits.model_fields.items()
    rows = [f"| `{name}` | {default_text(field)} | {field.description} |" for name, field in fields]
    yield _table("| bound | default | meaning |\n|---|---|---|", rows)


if __name__ == "__main__":
    print(render_reference(), end="")
