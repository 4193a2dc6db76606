"""Prompts of text or of ids: checked before they are tokenized, and tokenized."""

import asyncio
from collections.abc import Sequence

from mpt_serve.openai.errors import InvalidValueError
from mpt_serve.openai.protocol.completions import Prompt
from mpt_serve.openai.server_context import ServerContext

__all__ = ["check_prompts", "tokenize_prompts"]


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

    async def ids(prompt: Prompt) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        return await context.backend.encode(prompt, add_special_tokens, parse_special_tokens)

    return await asyncio.gather(*map(ids, prompts))
