"""Log probabilities in the shapes of the API."""

from collections.abc import Iterable, Sequence

from mpt_serve.engine.request import TokenLogprobs
from mpt_serve.openai.output_choice import Token
from mpt_serve.openai.protocol.responses import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
)
from mpt_serve.openai.token_names import TokenNames

__all__ = ["chat_logprobs", "completion_logprobs", "prompt_logprobs"]

LOWEST = -9999.0  # JSON has no minus infinity


def completion_logprobs(tokens: Iterable[Token], count: int, names: TokenNames) -> CompletionLogprobs:
    """Return the four lists of /v1/completions, with `count` alternatives in addition to the token itself."""
    lists: CompletionLogprobs = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token in tokens:
        known = token.logprobs
        lists["tokens"].append(names.name(token.token_id))
        lists["token_logprobs"].append(None if known is None else _finite(known.logprob))
        lists["top_logprobs"].append(None if known is None else _by_name(token.token_id, known, count, names))
        lists["text_offset"].append(token.offset)
    return lists


def chat_logprobs(tokens: Iterable[Token], count: int, names: TokenNames) -> ChatLogprobs:
    """Return the object of /v1/chat/completions, with `count` alternatives and always the token itself.

    It lists the tokens of the message's content: together their texts are the content.
    """
    content: list[ChatTokenLogprob] = []
    for token in tokens:
        if not token.adds_text:
            continue
        assert token.logprobs is not None  # only the first token of a prompt has none
        top = sorted(_with_itself(token.token_id, token.logprobs, count).items(), key=lambda pair: -pair[1])
        alternatives = [_entry(token_id, logprob, names) for token_id, logprob in top] if count else []
        content.append({**_entry(token.token_id, token.logprobs.logprob, names), "top_logprobs": alternatives})
    return {"content": content, "refusal": None}


def prompt_logprobs(
    ids: Sequence[int], logprobs: Sequence[TokenLogprobs | None], count: int, names: TokenNames
) -> PromptLogprobs:
    """Return one object for each of the prompt's ids, with the alternatives by id; None for the first."""
    return [
        None if known is None else _by_id(token_id, known, count, names)
        for token_id, known in zip(ids, logprobs, strict=True)
    ]


def _with_itself(token_id: int, known: TokenLogprobs, count: int) -> dict[int, float]:
    """Return the token first, with the number reported for it elsewhere, then the most likely others."""
    return {token_id: known.logprob} | {other: lp for other, lp in known.top[:count] if other != token_id}


def _by_name(token_id: int, known: TokenLogprobs, count: int, names: TokenNames) -> dict[str, float]:
    top = _with_itself(token_id, known, count)
    return dict(zip(names.distinct(top), map(_finite, top.values()), strict=True))


def _by_id(token_id: int, known: TokenLogprobs, count: int, names: TokenNames) -> dict[str, PromptLogprob]:
    ranks = {other: rank for rank, (other, _) in enumerate(known.top, 1)} | {token_id: known.rank}
    return {
        str(other): {"logprob": _finite(lp), "rank": ranks[other], "decoded_token": names.name(other)}
        for other, lp in _with_itself(token_id, known, count).items()
    }


def _entry(token_id: int, logprob: float, names: TokenNames) -> TokenLogprob:
    return {"token": names.name(token_id), "logprob": _finite(logprob), "bytes": names.utf8(token_id)}


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)
