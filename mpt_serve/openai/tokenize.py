"""POST /tokenize and /detokenize."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mpt_serve.openai.errors import InvalidValueError
from mpt_serve.openai.protocol.responses import DetokenizeResponse
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
            chat = body.get("messages") is not None
            parsed = TokenizeChatRequest.parse(body) if chat else TokenizeRequest.parse(body)
            headers = context.ignored_fields_header(type(parsed).unknown_fields(body))
            del body
            ids = await _ids(context, parsed)
            token = context.backend.tokenizer.token if parsed.return_token_strs else None
            content = await _tokenize_content(ids, context.backend.model.max_model_len, token)
        return Response(content, media_type="application/json", headers=dict(headers))

    return endpoint


async def _ids(context: ServerContext, request: TokenizeRequest | TokenizeChatRequest) -> Sequence[int]:
    """Return the ids of a text or a conversation."""
    context.require_model(request.model)
    await context.require_ready()
    if isinstance(request, TokenizeChatRequest):
        return await context.tokenize_conversation(request)
    context.require_bounded([request.prompt], "prompt")
    return await context.backend.encode(request.prompt, request.add_special_tokens, request.parse_special_tokens)


async def _tokenize_content(ids: Sequence[int], max_model_len: int, token: Callable[[int], str] | None) -> bytes:
    """Return the body of the response, with the text of each token if `token` returns it.

    A million ids take a tenth of a second, in which other requests have turns.
    """
    tokens, token_strs = await _json_list(ids), "null" if token is None else await _json_list(ids, token)
    head = f'"count":{len(ids)},"max_model_len":{max_model_len}'
    return f'{{{head},"tokens":{tokens},"token_strs":{token_strs}}}'.encode()


async def _json_list(ids: Sequence[int], item: Callable[[int], int | str] = int) -> str:
    """Return the JSON of a list with an item for each id."""
    pieces: list[str] = []
    for start in range(0, len(ids), IDS_PER_TURN):
        items = list(map(item, ids[start : start + IDS_PER_TURN]))
        pieces.append(json.dumps(items, ensure_ascii=False, separators=(",", ":"))[1:-1])
        await asyncio.sleep(0)
    return f"[{','.join(pieces)}]"


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
