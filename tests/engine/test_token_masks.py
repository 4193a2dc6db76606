"""What a choice may sample next: lists of ids as masks, made once for all choices of a request."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpt_serve.engine import SamplingParams, token_masks
from mpt_serve.engine.request import ignore_delta
from mpt_serve.engine.request_factory import RequestFactory
from mpt_serve.engine.token_masks import TokenMasks, Words, mask_below, mask_words

VOCAB, LIMIT = 70, 66
POSSIBLE = mask_below(LIMIT, VOCAB)
IDS = st.lists(st.integers(0, LIMIT - 1), max_size=80)


class OddIds:
    """A grammar that allows odd ids."""

    def count_verifiable(self, drafts: list[int]) -> int:
        return len(drafts)

    def fill_masks(self, drafts: list[int], out: Words) -> int:
        out[:] = POSSIBLE & 0xAAAAAAAA
        return len(drafts)

    def accept(self, token_id: int) -> None:
        pass


def ids_of(mask: Words) -> set[int]:
    return {i for i in range(32 * mask_words(VOCAB)) if mask[i // 32] >> i % 32 & 1}


def masks_of(token_masks: TokenMasks, output_ids: list[int], drafts: list[int]) -> list[set[int]]:
    out = np.zeros((1 + len(drafts), mask_words(VOCAB)), np.uint32)
    token_masks.fill(len(output_ids), output_ids, drafts, out)
    return [ids_of(row) for row in out]


@given(
    allowed=st.none() | IDS.filter(len),
    words=st.lists(st.lists(st.integers(0, LIMIT - 1), min_size=1, max_size=3), max_size=6),
    single=IDS,
    stop_ids=IDS,
    output_ids=IDS,
    drafts=st.lists(st.integers(0, LIMIT - 1), max_size=3),
    with_grammar=st.booleans(),
)
def test_masks_are_what_the_lists_say(
    allowed: list[int] | None,
    words: list[list[int]],
    single: list[int],
    stop_ids: list[int],
    output_ids: list[int],
    drafts: list[int],
    with_grammar: bool,
) -> None:
    words = [*words, *([i] for i in single)]
    params = SamplingParams(max_tokens=99, min_tokens=40, allowed_token_ids=allowed, bad_words=words)
    request = TokenMasks(params, frozenset(stop_ids), POSSIBLE)
    token_masks = request.with_grammar(OddIds()) if with_grammar else request
    expected = []
    for j in range(1 + len(drafts)):
        before = [*output_ids, *drafts[:j]]
        left = {i for i in range(LIMIT) if i % 2 or not with_grammar}
        left = left & set(allowed or left) or left
        banned = {word[-1] for word in words if before[len(before) - len(word) + 1 :] == word[:-1]}
        left = left - banned or left
        expected.append(left - set(stop_ids) or left if len(before) < 40 else left)
    for _ in range(2):  # nothing that later masks are made of has changed
        assert masks_of(token_masks, output_ids, drafts) == expected
    if not with_grammar:
        assert masks_of(request, output_ids, drafts) == expected


def test_choices_share_what_their_request_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    mask_of = token_masks._mask_of
    monkeypatch.setattr(token_masks, "_mask_of", lambda *parts: made.append(parts) or mask_of(*parts))
    factory = RequestFactory(VOCAB, LIMIT, [0], max_model_len=64, block_size=4)
    counts = []
    for n in (1, 16):
        made.clear()
        params = SamplingParams(n=n, allowed_token_ids=[1, 2, 3], bad_words=[[1]], min_tokens=2)
        choices = factory.make([5], params, ignore_delta, "name", (), None)
        counts.append(len(made))
    assert counts[0] == counts[1]
    assert all(masks_of(choice.token_masks, [], []) == [{2, 3}] for choice in choices if choice.token_masks)


def test_shared_masks_cannot_be_written() -> None:
    params = SamplingParams(allowed_token_ids=[1, 2, 3], bad_words=[[1]], min_tokens=2)
    token_masks = TokenMasks(params, [2], POSSIBLE)
    shared = [value for value in vars(token_masks).values() if isinstance(value, np.ndarray) and value is not POSSIBLE]
    assert len(shared) == 3
    assert not any(mask.flags.writeable for mask in shared)
