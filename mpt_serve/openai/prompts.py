"""Prompts of text or of ids: checked before they are tokenized, and tokenized."""

import asyncio
from collections.abc import Iterable, Sequence

from mpt_serve.openai.errors import InvalidValueError
from mpt_serve.openai.protocol.completions import Prompt
from mpt_serve.openai.server_context import ServerContext

__all__ = ["READ_AT_ONCE", "check_prompts", "encode_texts", "tokenize_prompts"]

# Prompts of one request, if nothing is generated for them, that wait or run; other requests have their turns between.
READ_AT_ONCE = 32


def check_prompts(context: ServerContext, prompts: Sequence[Prompt], param: str, at_most: int, *, cut: bool) -> None:
    """Raise an ApiError for too many prompts, too much text, or ids that the model does not have.

    cut: whether prompts that are too long will be cut.
    """
    if len(prompts) > at_most:
        message = f"'{param}' must hold at most {at_most} {param}s; got {len(prompts)}."
        raise InvalidValueError(message, param=param)
    context.require_bounded((prompt for prompt in prompts if isinstance(prompt, str)), param)
    vocab_len = context.backend.model.vocab_len
    for prompt in prompts:
        if isinstance(prompt, str):
            if not cut:
                context.require_short(prompt, param)
        elif min(prompt) < 0 or max(prompt) >= vocab_len:
            raise InvalidValueError(f"'{param}' must hold token ids from 0 to {vocab_len - 1}.", param=param)


async def tokenize_prompts(
    context: ServerContext, prompts: Sequence[Prompt], add_special_tokens: bool, parse_special_tokens: bool
) -> Sequence[Sequence[int]]:
    """Return the ids of each prompt."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    encoded = iter(await encode_texts(context, texts, add_special_tokens, parse_special_tokens))
    return [next(encoded) if isinstance(prompt, str) else prompt for prompt in prompts]


async def encode_texts(
    context: ServerContext, texts: Iterable[str], add_special_tokens: bool = True, parse_special_tokens: bool = True
) -> list[Sequence[int]]:
    """Return the ids of each text. No more than `READ_AT_ONCE` of them are with the Tokenizers at the same time."""
    places = asyncio.Semaphore(READ_AT_ONCE)

    async def ids(text: str) -> Sequence[int]:
        async with places:
            return await context.backend.encode(text, add_special_tokens, parse_special_tokens)

    return await asyncio.gather(*map(ids, texts))
