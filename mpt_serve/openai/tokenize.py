"""POST /tokenize and /detokenize."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mpt_serve.openai.errors import InvalidValueError
from mpt_serve.openai.protocol.responses import DetokenizeResponse, TokenizeResponse
from mpt_serve.openai.protocol.tokenize import DetokenizeRequest, TokenizeChatRequest, TokenizeRequest
from mpt_serve.openai.server_context import ServerContext

__all__ = ["detokenize", "tokenize"]

IDS_PER_TURN = 8192  # about a millisecond of work

Endpoint = Callable[[Request], Awaitable[Response]]


def tokenize(context: ServerContext) -> Endpoint:
    """Return the endpoint that turns a text, or a conversation, into ids."""

    async def endpoint(request: Request) -> Response:
        with context.text_requests.enter():
            body = await context.bodies.read_json_object(request)
            ids, unknown = await (_chat_ids if body.get("messages") is not None else _text_ids)(context, body)
            del body
            content = await _tokenize_content(ids, context.backend.model.max_model_len)
        headers = context.ignored_fields_header(unknown)
        return Response(content, media_type="application/json", headers=dict(headers))

    return endpoint


async def _text_ids(context: ServerContext, body: Mapping[str, Any]) -> tuple[Sequence[int], Sequence[str]]:
    """Return the ids of a text, and the fields that are unknown."""
    request = TokenizeRequest.parse(body)
    context.require_model(request.model)
    await context.require_ready()
    context.require_bounded([request.prompt], "prompt")
    ids = await context.backend.encode(request.prompt, request.add_special_tokens, request.parse_special_tokens)
    return ids, TokenizeRequest.unknown_fields(body)


async def _chat_ids(context: ServerContext, body: Mapping[str, Any]) -> tuple[Sequence[int], Sequence[str]]:
    """Return the ids of a conversation, and the fields that are unknown."""
    request = TokenizeChatRequest.parse(body)
    context.require_model(request.model)
    await context.require_ready()
    return await context.tokenize_conversation(request), TokenizeChatRequest.unknown_fields(body)


async def _tokenize_content(ids: Sequence[int], max_model_len: int) -> bytes:
    """Return the body of the response. A million ids take a tenth of a second, in which other requests have turns."""
    pieces: list[str] = []
    for start in range(0, len(ids), IDS_PER_TURN):
        pieces.append(",".join(map(str, ids[start : start + IDS_PER_TURN])))
        await asyncio.sleep(0)
    tokens: list[int] = []
    response: TokenizeResponse = {
        "count": len(ids),
        "max_model_len": max_model_len,
        "tokens": tokens,  # filled in below
        "token_strs": None,
    }
    before, after = json.dumps(response, separators=(",", ":")).split("[]")
    return f"{before}[{','.join(pieces)}]{after}".encode()


def detokenize(context: ServerContext) -> Endpoint:
    """Return the endpoint that turns ids into text."""

    async def endpoint(request: Request) -> Response:
        with context.text_requests.enter():
            body = await context.bodies.read_json_object(request)
            tokens = DetokenizeRequest.parse(body)
            context.require_model(tokens.model)
            _check_ids(tokens.tokens, context)
            await context.require_ready()
            text = await asyncio.to_thread(context.backend.tokenizer.decode, tokens.tokens)
        response: DetokenizeResponse = {"prompt": text}
        return JSONResponse(response, headers=context.ignored_fields_header(DetokenizeRequest.unknown_fields(body)))

    return endpoint


def _check_ids(ids: Sequence[int], context: ServerContext) -> None:
    limit, vocab_len = context.limits.max_detokenize_tokens, context.backend.model.vocab_len
    if len(ids) > limit:
        raise InvalidValueError(f"'tokens' must hold at most {limit} ids; got {len(ids)}.", param="tokens")
    if max(ids, default=0) >= vocab_len:
        raise InvalidValueError(f"'tokens' must be ids of the tokenizer, from 0 to {vocab_len - 1}.", param="tokens")
