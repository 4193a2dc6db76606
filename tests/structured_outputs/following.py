"""Helpers to follow a grammar: masks as sets, texts through a tokenizer, random outputs."""

import functools
from collections.abc import Sequence

import numpy as np

from mpt_serve.structured_outputs.grammar import GrammarState
from mpt_serve.text.tokenizer import TextTokenizer

_CLOSING = {bytes([byte]) for byte in b'"}]:,019ab@.-TZ/'} | {b"true", b"null"}
WORDS = 1576  # of a mask over the models' padded vocabulary of 50,432 ids


def allowed_ids(state: GrammarState) -> set[int]:
    """Return the ids of the next mask."""
    return mask_sets(state, [])[0]


def mask_sets(state: GrammarState, drafts: Sequence[int]) -> list[set[int]]:
    """Return the sets of ids of the masks after each beginning of the drafts that is allowed."""
    out = np.full((1 + len(drafts), WORDS), 0xDEADBEEF, np.uint32)
    count = state.fill_masks(drafts, out)
    return [set(bits(row)) for row in out[: 1 + count]]


def bits(row: np.ndarray) -> list[int]:
    return [int(i) for i in np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))]


def accepts(state: GrammarState, ids: Sequence[int], eos_id: int) -> bool:
    """Return whether the ids are a complete output. Masks and `accept` must agree on each."""
    mask = np.zeros((1, WORDS), np.uint32)
    for token_id in [*ids, eos_id]:
        state.fill_masks([], mask)
        allowed = bool(mask[0, token_id // 32] >> token_id % 32 & 1)
        try:
            state.accept(token_id)
        except ValueError:
            assert not allowed
            return False
        assert allowed
    return True


@functools.cache
def _closing_ids(tokenizer: TextTokenizer) -> frozenset[int]:
    return frozenset(i for i in range(tokenizer.vocab_len) if tokenizer.token_bytes(i) in _CLOSING)


def random_output(state: GrammarState, tokenizer: TextTokenizer, seed: int, max_tokens: int = 400) -> str:
    """Return a text of random ids that the masks allow: any at first, then those that lead to its end."""
    rng = np.random.default_rng(seed)
    closing = _closing_ids(tokenizer)
    patience = int(rng.integers(1, 60))
    ids: list[int] = []
    for position in range(max_tokens):
        allowed = sorted(allowed_ids(state))
        ends = [i for i in allowed if i in tokenizer.eos_token_ids]
        if ends and (position >= patience or len(ends) == len(allowed)):
            state.accept(ends[0])
            assert state.finished
            return b"".join(tokenizer.token_bytes(i) for i in ids).decode("utf-8")
        allowed = [i for i in allowed if i not in ends]
        if position >= patience or rng.random() < 0.5:
            allowed = [i for i in allowed if i in closing] or allowed
        ids.append(int(rng.choice(allowed)))
        state.accept(ids[-1])
    raise AssertionError(f"no end within {max_tokens} tokens: {tokenizer.decode(ids)[:200]!r}")
