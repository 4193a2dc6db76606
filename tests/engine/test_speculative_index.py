"""The index of a sequence's n-grams: what it finds is what a search through the whole sequence finds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpt_serve.engine.speculative.ngram_index import Match, NgramIndex

# Few different ids, so that runs of them repeat; and some that are wider than an n-gram's key can hold.
SEQUENCES = st.lists(st.integers(0, 3) | st.integers(2**20, 2**20 + 1), max_size=60)


def index_of(ids: list[int], min_length: int = 2, max_length: int = 32, max_candidates: int = 1000) -> NgramIndex:
    index = NgramIndex(min_length, max_length, max_candidates)
    index.extend(ids)
    return index


def longest_match(ids: list[int], min_length: int, max_length: int) -> Match | None:
    def common(source: int) -> int:
        length = 0
        while length < min(source, max_length) and ids[source - 1 - length] == ids[len(ids) - 1 - length]:
            length += 1
        return length

    matches = [Match(source, common(source)) for source in range(len(ids))]
    return max(
        (match for match in matches if match.length >= min_length), key=lambda m: (m.length, m.source), default=None
    )


@given(SEQUENCES, st.integers(1, 4), st.integers(4, 7))
def test_the_match_is_the_longest_and_of_those_the_last(ids: list[int], min_length: int, max_length: int) -> None:
    assert index_of(ids, min_length, max_length).match() == longest_match(ids, min_length, max_length)


@given(SEQUENCES, st.lists(st.integers(0, 60), max_size=4))
def test_it_does_not_matter_in_which_pieces_the_ids_arrive(ids: list[int], cuts: list[int]) -> None:
    index = NgramIndex(max_candidates=1000)
    ends = sorted(min(cut, len(ids)) for cut in cuts)
    for start, stop in zip([0, *ends], [*ends, len(ids)], strict=True):
        index.extend(ids[start:stop])
    assert index.ids == ids
    assert index.match() == index_of(ids).match()


@given(SEQUENCES, st.integers(1, 3))
def test_few_candidates_still_give_a_true_match(ids: list[int], max_candidates: int) -> None:
    index = index_of(ids, max_candidates=max_candidates)
    match = index.match()
    if match is not None:
        assert ids[match.source - match.length : match.source] == ids[len(ids) - match.length :]
        assert 2 <= match.length <= 32


@given(SEQUENCES)
def test_a_continued_match_is_as_long_as_one_searched_for(ids: list[int]) -> None:
    index = index_of(ids)
    match = index.match()
    if match is not None:
        index.extend([ids[match.source]])
        found = index.match()
        assert found is not None
        assert found.length == index.extended(match).length


def test_continuation_repeats_the_segment_when_it_runs_past_the_end() -> None:
    index = index_of([7, 1, 2, 3, 1, 2])
    match = index.match()
    assert match == Match(source=3, length=2)
    assert index.continuation(match.source, 8) == [3, 1, 2, 3, 1, 2, 3, 1]
    assert index.continuation(0, 3) == [7, 1, 2]


def test_a_run_of_one_id_continues_with_it() -> None:
    index = index_of([5] * 40)
    match = index.match()
    assert match == Match(source=39, length=32)
    assert index.continuation(match.source, 4) == [5, 5, 5, 5]


@pytest.mark.parametrize("limits", [(0, 4, 1), (5, 4, 1), (1, 4, 0)])
def test_limits_without_sense_are_refused(limits: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="matches need"):
        NgramIndex(*limits)
