"""docs/api.md, written from the models that the endpoints parse requests with."""

import json
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from mpt_serve.configuration.limits import Limits
from mpt_serve.configuration.reference import default_text
from mpt_serve.openai.errors import ERROR_KINDS, NotReadyError
from mpt_serve.openai.protocol.anthropic_blocks import AnthropicMessage, AnthropicTool, ContentBlock
from mpt_serve.openai.protocol.anthropic_request import MessagesRequest, OutputConfig
from mpt_serve.openai.protocol.batches import BatchRequest, FileUpload, OutputExpiry
from mpt_serve.openai.protocol.chat import ChatCompletionRequest
from mpt_serve.openai.protocol.completions import CompletionRequest
from mpt_serve.openai.protocol.embeddings import EmbeddingRequest
from mpt_serve.openai.protocol.generation import GenerationFields
from mpt_serve.openai.protocol.messages import ChatMessage, ConversationRequest
from mpt_serve.openai.protocol.reading import ReadingRequest
from mpt_serve.openai.protocol.request_model import Refused, RequestModel, json_schema
from mpt_serve.openai.protocol.response_items import InputItem, ResponseTool
from mpt_serve.openai.protocol.response_request import ResponseRequest, TextFormat, TextOptions
from mpt_serve.openai.protocol.sampling import SamplingRequest, StreamOptions
from mpt_serve.openai.protocol.schema_words import Schema, accepted
from mpt_serve.openai.protocol.scoring import RerankRequest, ScoreRequest
from mpt_serve.openai.protocol.tokenize import DetokenizeRequest, TokenizeChatRequest, TokenizeRequest
from mpt_serve.openai.protocol.tools import CalledFunction, FunctionDefinition, FunctionTool, RequestToolCall

__all__ = ["render_reference"]

_INTRODUCTION = """\
# HTTP API

Written by `python -m mpt_serve.openai.reference > docs/api.md` from the models that the server parses requests with.

| endpoint | response |
|---|---|
| `POST /v1/completions` | text that continues one prompt or several, whole or as server-sent events |
| `POST /v1/chat/completions` | the assistant's next message; needs a model with a chat template |
| `POST /v1/embeddings` | the model's hidden states of texts, pooled or of each token |
| `POST /v1/responses` | the assistant's next message and calls, in OpenAI's newer API, without state |
| `POST /v1/messages` | the assistant's next message, in Anthropic's API |
| `POST /v1/messages/count_tokens` | the number of tokens of a conversation: `{"input_tokens"}` |
| `POST /v1/score` | the likelihood of texts, each after another one |
| `POST /v1/rerank` | documents in the order of their relevance to a query |
| `POST /v1/files`, `GET /v1/files` | a file for a batch is stored; those that are |
| `GET`, `DELETE /v1/files/{id}`, `GET /v1/files/{id}/content` | what is known of a file, its end, its bytes |
| `POST /v1/batches`, `GET /v1/batches` | the requests in a file run when no others do; the batches |
| `GET /v1/batches/{id}`, `POST /v1/batches/{id}/cancel` | how far a batch is; its end |
| `GET /v1/models`, `GET /v1/models/{id}` | the served model, with `max_model_len` and `root` |
| `POST /tokenize` | ids of a `prompt`, or of `messages`: `{"count", "max_model_len", "tokens", "token_strs"}` |
| `POST /detokenize` | text of `tokens`: `{"prompt"}` |
| `GET /tokenizer_info` | the tokenizer's special tokens, and the chat template's source |
| `GET /health` | 200 while the process lives |
| `GET /ready` | 200 while there are replicas that serve requests, else 503 |
| `GET /load` | the number of choices that wait or run in one replica of the Ingress: `{"server_load"}` |
| `GET /version` | the program's version |
| `GET /openapi.json` | this API as an OpenAPI document; `GET /docs` shows it as a page |
| `GET /` | a page to try the model ([playground.md](playground.md)), unless the setting `playground` is `false` |
| `GET /stats` | each Generator replica's counters: requests running and waiting, cache blocks, tokens, preemptions |
| `GET /metrics` | the same for Prometheus; `docs/metrics.md` lists it |

The paths below `/v1` are served without it as well. The setting `server_root_path` names a prefix below which a proxy
in front serves all of them.

Bodies are JSON objects in UTF-8, sent as `application/json`. In every field `null` means the same as leaving it out.
A field that is in no table below has no effect, and the response's header `x-mpt-ignored-fields` names it; with the
setting `limits.unknown_fields: refuse` it is a 400. Every response carries the `x-request-id` that its request had, or
a new one; logs show a request's own only if it matches `[A-Za-z0-9_.-]{1,128}`. After the seconds in the request
header `x-request-timeout-seconds`, Serve ends the response without an error of this API.

With `access.key_file` or `access.key_variable` set, requests need an API key of that server in the header
`Authorization: Bearer KEY` or `X-Api-Key: KEY`, except those to `/health`, `/ready` and the page at `/`: else they get
a 401. `/stats` and `/metrics` need a key with the scope `admin`, everything else one with the scope `api`: a 403
without it. A key's limits are a 429 with `Retry-After`. Without these settings everyone who reaches the port may send
requests.
"""

_SAMPLING = """\
A token is selected in this order: the tokens that are allowed (by the grammar, `allowed_token_ids`, `bad_words`, no
stop ids before `min_tokens`), `logit_bias`, `repetition_penalty`, `frequency_penalty`, `presence_penalty`, then either
the most likely token, or a random one after `temperature`, `min_p`, `top_k` and `top_p`. Where the first would leave no
token, the later of them gives way, but never the grammar.

Choices are numbered prompt by prompt: the i-th choice of prompt p has the index p x `n` + i. With `best_of` above `n`,
that number of choices is generated, and the response has the `n` of the highest mean log probability over all their
tokens (of equal ones the earlier), the best first; this is only available without `stream`. `usage` counts each prompt
once, and the tokens of every choice that was generated.

One of `response_format`, `structured_outputs`, the `guided_*` fields and their other names says what the output must
match. A grammar is Lark, or GBNF (llama-server's; SGLang's `ebnf`), known by its `::=`, and translated. What cannot be
compiled, or takes too long to compile, is an error 400 with the field as its `param`; a 503 while too many others are
being compiled.
"""

_TOKENS = """\
## Tokens and log probabilities

Log probabilities are natural logarithms of the model's own probabilities, before everything that changes how tokens are
selected. A token has the same number wherever a response shows it; -9999 stands for minus infinity.

The `logprobs` of a completion are four lists with an entry for each token: `tokens`, `token_logprobs`, `top_logprobs`
(an object with the token itself and the requested number of the most likely ones) and `text_offset`, the characters
of `text` before the token; for part of a character, those before the character. With `echo` the prompt's tokens come
first; the first of all has null twice. In chat it is `{"content": [{"token", "logprob", "bytes", "top_logprobs"}],
"refusal": null}`, where `top_logprobs` holds the most likely tokens, and the token itself if it is none of them. Chat
lists the tokens of the message's content alone: not the one that ended it, and no special token that is left out.

In completions every generated token has its entry, the one that ended the text included. A stop string ends the entries
as it ends the text: what remains are the tokens that begin before the text's end. In a stream each token comes with the
chunk that completes its text: tokens inside a character, without text or in what may become a stop string wait.

A token is named by its text. Bytes that are not UTF-8 by themselves are named `bytes:` and the bytes, as in
`bytes:\\xf0\\x9f`; an id without text is `token_id:` and the id, as are all with `return_tokens_as_token_ids`. Of two
ids with the same text in one `top_logprobs` object, the less likely one is `token_id:` and the id as well, unless it is
the token itself.

`prompt_logprobs` comes with each completion choice, and beside the choices in chat: a list with null for the prompt's
first token and, for each other, an object by id of `{"logprob", "rank", "decoded_token"}`. `return_token_ids` adds
`token_ids` to each choice or chunk, with the ids that have entries in completions, and `prompt_token_ids`: to each
completion choice or its first chunk, and beside the choices in chat. In whole responses both are null without it.
"""

_TOOLS = """\
[tools.md](tools.md) says how models read tools and what can be relied on. A message with calls has `tool_calls`, each
with its `id`, the `type` "function" and the `function` with `name` and `arguments`; its `content` is null if there is
no text before the calls, and its `finish_reason` is `tool_calls`. In a stream the first delta of a call has its
`index`, `id`, `type` and name, all have the next piece of its `arguments`. With `response_format` or JSON in structured
outputs the message is JSON or has calls.
"""

_STREAMS = """\
## Streams

With `"stream": true` the response is `text/event-stream`: one `data:` line of JSON for each chunk, then `data: [DONE]`.
The status is sent with the first token, or when `first_token_wait_s` is over, so an error before that keeps its own
status; a later one comes as `data: {"error": {...}}` before `data: [DONE]`. Chunks contain whole UTF-8 characters and
never part of a stop string. A chat stream begins with the delta `{"role": "assistant", "content": ""}`. The last chunk
of a choice has its `finish_reason`: `stop` (end of text, a stop string or a stop id; `stop_reason` holds the string or
id), `length`, or in chat `tool_calls`. While there is nothing to send, the server sends comments, `: keep-alive`. When
a client disconnects, its request ends.

`stream_options`:
"""

_EMBEDDINGS = """\
An embedding is made of the hidden states that the output head reads: after the model's last norm, exactly those of a
plain forward pass, whatever else the server does. The models are trained to generate text, not for embeddings: compare
the quality with that of a model that is. `data` has `{"object", "index", "embedding"}` for each input.

OpenAI's clients send `encoding_format` `base64` unless another one is named, and decode it. With `pooling` `none` an
`embedding` is a list of vectors, one of each token; in base64, and with these clients, it is the numbers of all of them
one after the other. Send texts or ids of this model's tokenizer: LangChain's `OpenAIEmbeddings` sends ids of another
one unless it has `check_embedding_ctx_length=False`.

Inputs are computed beside the tokens of running streams. With `last`, keys and values of a prefix that the prefix cache
has are not computed again; `mean` and `none` need the hidden states of all tokens, and compute them. Of one request's
inputs 32 wait or run at the same time, and all together have a quarter of the places in the Generators.
"""

_RESPONSES = """\
Chat generates these responses: `input`, after `instructions`, becomes its messages, and everything that this page says
of chat's tools, structured outputs and log probabilities holds. An assistant's message and the calls that follow it are
one turn. The server stores nothing: `store` in a response is always false, each request has the whole conversation as
its `input`, and items of earlier responses may stand in it as they are.

A response's `output` has a `message` with one part of type `output_text`, and one `function_call` for each call;
without any text there are calls alone. Its `status` is `completed`, or `incomplete` with the reason `max_output_tokens`
when the context or the limit has ended it. The request's fields come back with it.

With `"stream": true` each event has its `type` as its name and a `sequence_number` from 0: `response.created`,
`response.in_progress`, then for each item `response.output_item.added`, its deltas (`response.content_part.added`,
`response.output_text.delta`, `response.output_text.done` and `response.content_part.done`, or
`response.function_call_arguments.delta` and `.done`) and `response.output_item.done`, and at the end
`response.completed`, `response.incomplete` or `response.failed` with the whole response. Nothing follows it.

`text` and its `format`:
"""

_MESSAGES = """\
Chat generates these messages: `system` and the blocks of `messages` become its messages, and all that this page says of
chat's tools and structured outputs holds. A message's `content` has a block `text`, and a block `tool_use` for each
call. `stop_reason` is `end_turn`, `max_tokens`, `tool_use`, or `stop_sequence` with the string as `stop_sequence`. Of a
call that `max_tokens` cuts off, `input` has what is complete. `usage` counts cached tokens of the prompt as
`cache_read_input_tokens`, and all others as `input_tokens`.

With `"stream": true` each event has its `type` as its name: `message_start`, then `content_block_start`,
`content_block_delta` (`text_delta`, or `input_json_delta` with the next piece of the arguments' JSON) and
`content_block_stop` for each block, `message_delta` with the reason of the end and the usage, and `message_stop`;
`ping` while there is nothing to send. An error after the beginning is an event `error`.

Errors are `{"type": "error", "error": {"type", "message", "param", "code"}, "request_id"}`, with Anthropic's types and
the status, `param` and `code` that they have elsewhere. A key may be sent as `X-Api-Key`, as Anthropic's clients do.
With `anthropic-version`, `/v1/models` responds in its form; `anthropic-beta` has no effect.

`/v1/messages/count_tokens` takes the fields from `model` to `output_config`.

`output_config`:
"""

_SCORES = """\
A score is the natural logarithm of the probability that a text follows another one, by the model's own log
probabilities. The two are tokenized as one text; a token across the border belongs to the second. Where nothing comes
before, the token that ends texts stands there. Keys and values of equal beginnings are computed once, as far as the
prefix cache has them; of one request's pairs 32 wait or run at the same time. `data` has for each pair
`{"index", "object", "score", "num_tokens", "is_greedy"}`.

A document's `relevance_score` is the geometric mean of the probabilities of the query's tokens after the document and a
line end, which needs no training for it: `results` has `{"index", "relevance_score", "document"}`, best first.

`/v1/score`:
"""

_BATCHES = """\
## /v1/files and /v1/batches

They need the setting `batches.folder` ([batches.md](batches.md)). Each key sees the files and batches of its own name.
`GET /v1/files` takes `purpose`, `order` (`desc`, `asc`), `limit` and `after`, `GET /v1/batches` the latter two.

The form (`multipart/form-data`) of `POST /v1/files`:
"""

_ERRORS = """\
## HTTP

A response to HTTP/1.0 has a length and no chunks; a stream is gathered for it and sent when it is complete. A request
of HTTP/1.1 without a Host header is a 400. `OPTIONS *` lists the methods. A byte order mark before a body is skipped.
A client of HTTP/1.1 may end its side of the connection after a request and still gets the response: what distinguishes
it from one that is gone is that it takes what it gets meanwhile, a `100 Continue`, or a comment in a stream. That is so
behind `mpt-serve run` on Linux, without TLS in Serve's proxy; else, and with HTTP/1.0, such a request ends at once.

## Errors

Always `{"error": {"message", "type", "param", "code"}}`, but not for `/v1/messages`; `param` is a field's path or null.
A 429 and a 503 are temporary and carry `Retry-After` in seconds and `Retry-After-Ms` in milliseconds. When the server
is at capacity they spread over the time in which the accepted work drains, by its measured rate, so that the refused do
not return together. A proxy that refuses more than 100 requests a second holds further refusals back for up to 5 s.

A request to generate is refused before its body is read. A body has `body_timeout_s` to arrive, then its connection is
closed with a 408; bodies that do not arrive keep nobody from a place. `/health`, `/ready`, `/v1/models` and `/version`
never wait for other requests.

`X-Request-Id` names the request in logs and comes back with the response if it matches `[\\w.-]{1,128}`; another one is
replaced.

### Responses of Ray Serve itself

Serve's HTTP proxy answers some requests in plain text: a 404 until an application runs, a 503, a 408 after the seconds
in a header `X-Request-Timeout-Seconds`, and a 500 to a header `X-Request-Id`, `X-Session-Id` or
`Serve-Multiplexed-Model-Id` that is not UTF-8. With the variable
`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=mpt_serve.deployments.proxy_guard:middlewares` in the environment of every
node (`mpt-serve run` sets it, and so do the files in `cluster/`) they are errors as above, the 404 a 503 `loading`
(for browsers a page that loads itself again), and these headers are replaced or removed. What is not HTTP gets a 400;
in plain text without that variable.

With that variable, connections are bounded too: headers must arrive within `body_timeout_s`; of 16,384 connections (or
half of the files that a process may open) half may be idle and a quarter may be sending headers, and one more closes
the one that has been so for longest; a client that reads nothing of its response for 60 s is disconnected.
Idle connections are closed after `http_options.keep_alive_timeout_s`. `mpt-serve run` also sets
`MPT_SERVE_PROXY_LIMITS`, with which bodies and requests beyond the limits below do not reach Serve; without it Serve's
proxy takes bodies of up to 64 MiB, and the Ingress refuses them. Clients are not distinguished by their addresses:
where they are not trusted, put a load balancer in front that does.
"""


def render_reference() -> str:
    """Return the whole of docs/api.md."""
    parts = [
        _INTRODUCTION,
        "## POST /v1/completions\n",
        *_tables(CompletionRequest, without=SamplingRequest),
        "## POST /v1/chat/completions\n",
        *_tables(ChatCompletionRequest, without=SamplingRequest),
        "Each of the `messages`:\n",
        *_tables(ChatMessage),
        "Each of the `tools`, its `function`, each of a message's `tool_calls` and its `function`:\n",
        *_tables(FunctionTool),
        *_tables(FunctionDefinition),
        *_tables(RequestToolCall),
        *_tables(CalledFunction),
        _TOOLS,
        "## Fields of both\n",
        *_tables(SamplingRequest),
        _SAMPLING,
        _TOKENS,
        _STREAMS,
        *_tables(StreamOptions),
        "## POST /v1/responses\n",
        *_tables(ResponseRequest, without=GenerationFields),
        "Also those fields of both above that say how tokens are selected and when text stops: `temperature` to"
        " `cache_salt`.\n",
        _RESPONSES,
        *_tables(TextOptions),
        *_tables(TextFormat),
        "Each of the items in `input`, and each of the `tools`:\n",
        *_tables(InputItem),
        *_tables(ResponseTool),
        "## POST /v1/messages\n",
        *_tables(MessagesRequest, without=GenerationFields),
        "Also the fields that say how tokens are selected and when text stops, as for `/v1/responses`.\n",
        _MESSAGES,
        *_tables(OutputConfig),
        "Each of the `messages`, each block of its `content`, and each of the `tools`:\n",
        *_tables(AnthropicMessage),
        *_tables(ContentBlock),
        *_tables(AnthropicTool),
        "## POST /v1/embeddings\n",
        _EMBEDDINGS,
        *_tables(EmbeddingRequest, without=ReadingRequest),
        "## POST /v1/score and /v1/rerank\n",
        _SCORES,
        *_tables(ScoreRequest, without=ReadingRequest),
        "`/v1/rerank`:\n",
        *_tables(RerankRequest, without=ReadingRequest),
        "## Fields of embeddings, scores and rankings\n",
        *_tables(ReadingRequest),
        *_batches(),
        "## POST /tokenize\n",
        "Either a text:\n",
        *_tables(TokenizeRequest),
        "or a conversation, with the fields that chat has for it:\n",
        *_tables(TokenizeChatRequest, without=ConversationRequest),
        "## POST /detokenize\n",
        *_tables(DetokenizeRequest),
        _ERRORS,
        *_errors(),
        "## Limits\n",
        "`docs/settings.md` lists those that can be set.\n",
        *_limits(),
    ]
    return "\n".join(parts)


def _batches() -> Iterator[str]:
    yield _BATCHES
    yield from _tables(FileUpload)
    yield "The body of `POST /v1/batches`, and its `output_expires_after`:\n"
    yield from _tables(BatchRequest)
    yield from _tables(OutputExpiry)


def _tables(model: type[RequestModel], without: type[RequestModel] = RequestModel) -> Iterator[str]:
    """Yield the tables of a model's fields, those of one of its bases left out."""
    root = json_schema(model)
    left_out = set(without.field_order())
    fields = {name: root["properties"][name] for name in model.field_order() if name not in left_out}
    ignored = {name: field for name, field in fields.items() if "x-ignored" in field}
    offered = {name: field for name, field in fields.items() if name not in ignored}
    refused = [field for field in model.refused if field not in without.refused]
    rows = [_offered(name, field, root) for name, field in offered.items()]
    yield _table("| field | accepts | default | meaning |\n|---|---|---|---|", rows)
    if refused:
        yield _table("| refused with 400 | unless it is | because |\n|---|---|---|", map(_refused, refused))
    if ignored:
        rows = [f"| `{name}` | {accepted(field, root)} | {field['description']} |" for name, field in ignored.items()]
        yield _table("| no effect | accepts | because |\n|---|---|---|", rows)


def _table(head: str, rows: Iterable[str]) -> str:
    return "\n".join([head, *rows, ""])


def _offered(name: str, field: Schema, root: Schema) -> str:
    description = field["description"].replace("|", "\\|")  # a bar would end the cell
    return f"| `{name}` | {accepted(field, root)} | {_default(name, field, root)} | {description} |"


def _default(name: str, field: Schema, root: Schema) -> str:
    if name in root.get("required", ()):
        return "required"
    default = field["default"]
    empty: Collection[Any] = (None, [], {})
    return str(field.get("x-default", "none" if default in empty else _json(default)))


def _refused(field: Refused) -> str:
    neutral = " or ".join(["`null`", *map(_json, field.neutral)])
    return f"| `{field.name}` | {neutral} | {field.why} |"


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
    yield _table("| limit | default | meaning |\n|---|---|---|", rows)


if __name__ == "__main__":
    print(render_reference(), end="")
