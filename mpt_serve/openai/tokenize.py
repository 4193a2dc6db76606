"""POST /tokenize and /detokenize."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse

from mpt_serve.openai.body import read_json_object
from mpt_serve.openai.errors import InvalidValueError
from mpt_serve.openai.fields import Fields, Offered, Refused
from mpt_serve.openai.kinds import Boolean, Integer, ListOf, String
from mpt_serve.openai.messages import CONVERSATION_FIELDS, Conversation
from mpt_serve.openai.sampling_fields import MODEL_FIELD
from mpt_serve.openai.server_context import ServerContext

__all__ = ["DETOKENIZE_FIELDS", "TOKENIZE_CHAT_FIELDS", "TOKENIZE_FIELDS", "detokenize", "tokenize"]

Endpoint = Callable[[Request], Awaitable[JSONResponse]]

_TOKEN_STRS = Refused("return_token_strs", "tokens are returned as ids", (False,))

TOKENIZE_FIELDS = Fields(
    MODEL_FIELD,
    Offered("prompt", String(), "The text; send `messages` instead for a conversation.", required=True),
    Offered("add_special_tokens", Boolean(), "Let the tokenizer add its own special tokens.", True),
    _TOKEN_STRS,
)
TOKENIZE_CHAT_FIELDS = Fields(
    MODEL_FIELD,
    *CONVERSATION_FIELDS,
    Refused("add_special_tokens", "chat templates write their own special tokens", (False,)),
    _TOKEN_STRS,
)
DETOKENIZE_FIELDS = Fields(
    MODEL_FIELD,
    Offered("tokens", ListOf(Integer(0, 2**31 - 1), 262_144), "The ids.", required=True),
)


def tokenize(service: ServerContext) -> Endpoint:
    """Return the endpoint that turns a text, or a conversation, into ids."""

    async def endpoint(request: Request) -> JSONResponse:
        body = await read_json_object(request, service.limits)
        chat = body.get("messages") is not None
        parsed = (TOKENIZE_CHAT_FIELDS if chat else TOKENIZE_FIELDS).parse(body)
        service.require_model(parsed.values["model"])
        await service.require_ready()
        unknown = parsed.unknown
        if chat:
            conversation = Conversation.from_values(parsed.values, parsed.given)
            ids = await conversation.tokenize(service)
            unknown += conversation.unknown
        else:
            ids = await service.backend.encode(parsed.values["prompt"], parsed.values["add_special_tokens"])
        answer = {
            "count": len(ids),
            "max_model_len": service.backend.model.max_model_len,
            "tokens": ids,
            "token_strs": None,
        }
        return JSONResponse(answer, headers=service.ignored_fields_header(unknown))

    return endpoint


def detokenize(service: ServerContext) -> Endpoint:
    """Return the endpoint that turns ids into text."""

    async def endpoint(request: Request) -> JSONResponse:
        parsed = DETOKENIZE_FIELDS.parse(await read_json_object(request, service.limits))
        service.require_model(parsed.values["model"])
        tokens, vocab_len = parsed.values["tokens"], service.backend.model.vocab_len
        if any(token >= vocab_len for token in tokens):
            message = f"'tokens' must be ids of the tokenizer, from 0 to {vocab_len - 1}."
            raise InvalidValueError(message, param="tokens")
        await service.require_ready()
        text = await service.backend.decode(tokens)
        return JSONResponse({"prompt": text}, headers=service.ignored_fields_header(parsed.unknown))

    return endpoint
