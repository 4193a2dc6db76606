"""Deltas as bytes, on their way from a Generator to an Ingress; see `delta_link`.

A frame is a list of entries, one for each choice that has something new; an entry is `[number, index, ...]`, where
`number` is the Ingress' name of the request.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgpack

from mpt_serve.engine.request import FAILED, Delta, TokenLogprobs

__all__ = ["decode", "encode", "ends_early", "is_last", "merged"]

_COMMON = 5  # values that each entry has; those that have logprobs or end have more

Logprobs = tuple[TokenLogprobs | None, ...]


def encode(entries: Iterable[tuple[int, Delta]]) -> bytes:
    """Return a frame of deltas, each with its request's number, at most one for each choice."""
    return bytes(msgpack.packb([_entry(number, delta) for number, delta in entries]))


def _entry(number: int, delta: Delta) -> tuple[object, ...]:
    common = (number, delta.index, delta.token_ids, delta.num_prompt_tokens, delta.num_cached_tokens)
    if delta.finish_reason is None and delta.logprobs is None and delta.prompt_logprobs is None:
        return common  # hidden states come with the end
    return (
        *common,
        delta.finish_reason,
        delta.stop_reason,
        delta.message,
        _plain(delta.logprobs),
        _plain(delta.prompt_logprobs),
        delta.hidden_states,
    )


def _plain(logprobs: Logprobs | None) -> list[object] | None:
    if logprobs is None:
        return None
    return [None if entry is None else (entry.logprob, entry.rank, entry.top) for entry in logprobs]


def is_last(entry: Sequence[Any]) -> bool:
    """Return whether an entry is the last of its choice."""
    return len(entry) > _COMMON and entry[_COMMON] is not None


def ends_early(entry: Sequence[Any]) -> bool:
    """Return whether an entry is the last of a choice that was not generated to its end."""
    return is_last(entry) and entry[_COMMON] in FAILED


def decode(entries: Sequence[Sequence[Any]]) -> Delta:
    """Return entries of one choice as one delta."""
    if all(len(entry) == _COMMON for entry in entries):
        _, index, _, num_prompt_tokens, num_cached_tokens = entries[-1]
        ids = tuple(token_id for entry in entries for token_id in entry[2])
        return Delta(ids, None, None, num_prompt_tokens, num_cached_tokens, index=index)
    return merged([_decode(entry) for entry in entries])


def _decode(entry: Sequence[Any]) -> Delta:
    _, index, token_ids, num_prompt_tokens, num_cached_tokens, *rest = entry
    if not rest:
        return Delta(tuple(token_ids), None, None, num_prompt_tokens, num_cached_tokens, index=index)
    finish_reason, stop_reason, message, logprobs, prompt_logprobs, hidden_states = rest
    return Delta(
        tuple(token_ids),
        finish_reason,
        stop_reason,
        num_prompt_tokens,
        num_cached_tokens,
        message,
        index,
        None if logprobs is None else tuple(_logprobs(values) for values in logprobs),
        None if prompt_logprobs is None else tuple(v and _logprobs(v) for v in prompt_logprobs),
        hidden_states,
    )


def _logprobs(values: Sequence[Any]) -> TokenLogprobs:
    logprob, rank, top = values
    return TokenLogprobs(logprob, rank, tuple((token, value) for token, value in top))


def merged(deltas: Sequence[Delta]) -> Delta:
    """Return one choice's deltas as one."""
    if len(deltas) == 1:
        return deltas[0]
    last = deltas[-1]
    logprobs: list[TokenLogprobs] = [entry for delta in deltas if delta.logprobs for entry in delta.logprobs]
    prompts = (delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs is not None)
    return Delta(
        token_ids=tuple(token_id for delta in deltas for token_id in delta.token_ids),
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        num_prompt_tokens=last.num_prompt_tokens,
        num_cached_tokens=last.num_cached_tokens,
        message=last.message,
        index=last.index,
        logprobs=tuple(logprobs) if any(delta.logprobs is not None for delta in deltas) else None,
        prompt_logprobs=next(prompts, None),
        hidden_states=last.hidden_states,
    )
