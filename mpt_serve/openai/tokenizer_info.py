"""GET /tokenizer_info: what a client needs to tokenize through this server, as lm-eval's remote tokenizer does."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse

from mpt_serve.openai.protocol.responses import TokenizerInfo
from mpt_serve.openai.server_context import ServerContext

__all__ = ["tokenizer_info"]


def tokenizer_info(context: ServerContext) -> Callable[[Request], Awaitable[JSONResponse]]:
    """Return the endpoint that describes the tokenizer: its special tokens by name, and the chat template's source."""

    async def endpoint(request: Request) -> JSONResponse:
        model, tokenizer = context.backend.model, context.backend.tokenizer
        named = tokenizer.special_tokens
        first_eos = next(map(tokenizer.token, tokenizer.eos_token_ids), None)
        body: TokenizerInfo = {
            "tokenizer_class": "PreTrainedTokenizerFast",  # which reads the same tokenizer.json
            "vocab_size": model.vocab_len,
            "model_max_length": model.max_model_len or None,
            "bos_token": named.get("bos_token"),
            "eos_token": named.get("eos_token") or first_eos,
            "unk_token": named.get("unk_token"),
            "pad_token": named.get("pad_token"),
            "all_special_tokens": [tokenizer.token(token_id) for token_id in sorted(tokenizer.special_ids)],
            "chat_template": model.chat_template,
        }
        return JSONResponse(body)

    return endpoint
