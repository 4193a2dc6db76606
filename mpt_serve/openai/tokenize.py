"""POST /tokenize and /detokenize."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from mpt_serve.openai.body import read_json_object
from mpt_serve.openai.conversation import tokenize_conversation
from mpt_serve.openai.errors import InvalidValueError
from mpt_serve.openai.protocol.responses import DetokenizeResponse, TokenizeResponse
from mpt_serve.openai.protocol.tokenize import DetokenizeRequest, TokenizeChatRequest, TokenizeRequest
from mpt_serve.openai.server_context import ServerContext

__all__ = ["detokenize", "tokenize"]

Endpoint = Callable[[Request], Awaitable[JSONResponse]]


def tokenize(context: ServerContext) -> Endpoint:
    """Return the endpoint that turns a text, or a conversation, into ids."""

    async def endpoint(request: Request) -> JSONResponse:
        body = await read_json_object(request, context.limits)
        ids, unknown = await (_chat_ids if body.get("messages") is not None else _text_ids)(context, body)
        response: TokenizeResponse = {
            "count": len(ids),
            "max_model_len": context.backend.model.max_model_len,
            "tokens": ids,
            "token_strs": None,
        }
        return JSONResponse(response, headers=context.ignored_fields_header(unknown))

    return endpoint


async def _text_ids(context: ServerContext, body: Mapping[str, Any]) -> tuple[list[int], Sequence[str]]:
    """Return the ids of a text, and the fields that are unknown."""
    request = TokenizeRequest.parse(body)
    context.require_model(request.model)
    await context.require_ready()
    ids = await context.backend.encode(request.prompt, request.add_special_tokens)
    return ids, TokenizeRequest.unknown_fields(body)


async def _chat_ids(context: ServerContext, body: Mapping[str, Any]) -> tuple[list[int], Sequence[str]]:
    """Return the ids of a conversation, and the fields that are unknown."""
    request = TokenizeChatRequest.parse(body)
    context.require_model(request.model)
    await context.require_ready()
    return await tokenize_conversation(context, request), TokenizeChatRequest.unknown_fields(body)


def detokenize(context: ServerContext) -> Endpoint:
    """Return the endpoint that turns ids into text."""

    async def endpoint(request: Request) -> JSONResponse:
        body = await read_json_object(request, context.limits)
        tokens = DetokenizeRequest.parse(body)
        context.require_model(tokens.model)
        vocab_len = context.backend.model.vocab_len
        if max(tokens.tokens, default=0) >= vocab_len:
            message = f"'tokens' must be ids of the tokenizer, from 0 to {vocab_len - 1}."
            raise InvalidValueError(message, param="tokens")
        await context.require_ready()
        response: DetokenizeResponse = {"prompt": context.backend.tokenizer.decode(tokens.tokens)}
        return JSONResponse(response, headers=context.ignored_fields_header(DetokenizeRequest.unknown_fields(body)))

    return endpoint
