"""A text does not depend on how its ids were grouped into deltas, and its tokens come with it."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_tokenizers import byte_level_tokenizer

from mpt_serve.text.text_stream import TextStream
from mpt_serve.text.token_alignment import TextToken
from mpt_serve.text.tokenizer import TextTokenizer

TOKENIZER = TextTokenizer(byte_level_tokenizer())
STOPS = st.sampled_from([(), ("a",), ("ab", "b"), ("\ufffd",)])


def run(stream: TextStream, deltas: list[list[int]], end_ids: list[int]) -> tuple[str, int, str | None]:
    """Return the text, the number of ids taken and the stop string."""
    text, taken = "", 0
    for ids in deltas:
        piece, count, matched = stream.push(ids)
        text, taken = text + piece, taken + count
        if matched is not None:
            return text, taken, matched
    rest, matched = stream.finish(end_ids)
    return text + rest, taken + len(end_ids), matched


@given(
    ids=st.lists(st.integers(0, 255), max_size=30),
    cuts=st.sets(st.integers(1, 29)),
    stops=STOPS,
    include=st.booleans(),
    min_tokens=st.integers(0, 3),
    ends=st.booleans(),
)
def test_a_text_does_not_depend_on_the_grouping_of_its_ids(
    ids: list[int], cuts: set[int], stops: tuple[str, ...], include: bool, min_tokens: int, ends: bool
) -> None:
    bounds = [0, *sorted(cut for cut in cuts if cut < len(ids)), len(ids)]
    grouped = [ids[start:end] for start, end in pairwise(bounds)]
    streams = [
        TextStream(TOKENIZER, stops, include_stop=include, min_tokens=min_tokens, track_tokens=track, text_offset=7)
        for track in (False, True, True)
    ]
    end_ids = [256] * ends
    text, taken, matched = run(streams[0], [[i] for i in ids], end_ids)
    assert run(streams[1], grouped, end_ids) == (text, taken, matched)
    assert run(streams[2], [[i] for i in ids], end_ids) == (text, taken, matched)
    tokens = streams[1].take_tokens()
    assert tokens == streams[2].take_tokens()
    assert [token.token_id for token in tokens] == [*ids, *end_ids][: len(tokens)]
    if matched is None:
        assert len(tokens) == taken
    elif tokens:
        assert tokens[-1].offset < 7 + len(text)
    assert streams[0].take_tokens() == ()


def test_tokens_come_with_the_text_that_they_complete() -> None:
    stream = TextStream(TOKENIZER, track_tokens=True)
    a, first, second = (*TOKENIZER.encode("a"), *TOKENIZER.encode("é"))
    assert stream.push([a, first]) == ("a", 2, None)
    assert stream.take_tokens() == (TextToken(a, 0),)
    assert stream.take_tokens() == ()
    assert stream.push([second]) == ("é", 1, None)
    assert stream.take_tokens() == (TextToken(first, 1), TextToken(second, 1))
    assert stream.finish([256]) == ("", None)
    assert stream.take_tokens() == (TextToken(256, 2, adds_text=False),)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        TextStream(TOKENIZER, [""])
