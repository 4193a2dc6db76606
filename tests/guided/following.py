"""How tests follow a guide: masks as sets, texts through a tokenizer, random answers."""

import random
from collections.abc import Sequence

import numpy as np

from mpt_serve.guided.state import GuideState
from mpt_serve.text.tokenizer import TextTokenizer

WORDS = 1576  # of a mask over the models' padded vocabulary of 50,432 ids


def allowed_ids(state: GuideState) -> set[int]:
    """Return the ids of the next mask."""
    return mask_sets(state, [])[0]


def mask_sets(state: GuideState, drafts: Sequence[int]) -> list[set[int]]:
    """Return the sets of ids of the masks after each beginning of the drafts that is allowed."""
    out = np.full((1 + len(drafts), WORDS), 0xDEADBEEF, np.uint32)
    count = state.fill_masks(drafts, out)
    return [set(bits(row)) for row in out[: 1 + count]]


def bits(row: np.ndarray) -> list[int]:
    return [int(i) for i in np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))]


def accepts(state: GuideState, ids: Sequence[int], eos_id: int) -> bool:
    """Whether the ids are a whole answer. Masks and `accept` must agree on each."""
    for token_id in [*ids, eos_id]:
        allowed = token_id in allowed_ids(state)
        try:
            state.accept(token_id)
        except ValueError:
            assert not allowed
            return False
        assert allowed
    return True


def random_answer(state: GuideState, tokenizer: TextTokenizer, rng: random.Random, max_tokens: int) -> str | None:
    """Return a text of ids drawn uniformly from the masks; None where it did not end within max_tokens."""
    ids: list[int] = []
    for _ in range(max_tokens):
        token_id = rng.choice(sorted(allowed_ids(state)))
        state.accept(token_id)
        if token_id in tokenizer.eos_token_ids:
            return b"".join(tokenizer.token_bytes(i) for i in ids).decode("utf-8")
        ids.append(token_id)
    return None
