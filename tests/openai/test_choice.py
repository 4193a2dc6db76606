"""The output of a choice does not depend on how the engine's deltas were merged."""

from collections.abc import Sequence
from typing import Any

from fake_backend import byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from mpt_serve.engine.request import Delta
from mpt_serve.openai.output_choice import ChoicePart, OutputChoice, Token
from mpt_serve.text.text_stream import TextStream
from mpt_serve.text.tokenizer import TextTokenizer

TOKENIZER = byte_tokenizer()


def letters() -> TextTokenizer:
    """Id n is the n-th letter."""
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate("abcdefgh")}, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    return TextTokenizer(tokenizer)


LETTERS = letters()


def answer(runs: Sequence[Sequence[int]], stop: Sequence[str]) -> tuple[str, str | None, int]:
    """The text, the reason and the completion tokens of ids that come in these runs; the last one ends the text."""
    choice = OutputChoice(0, TextStream(LETTERS, stop))
    text, part = "", ChoicePart(0, "")
    for i, run in enumerate(runs):
        last = i == len(runs) - 1
        part = choice.advance(Delta(tuple(run), "stop" if last else None, run[-1] if last else None, 3))
        text += part.text
        if part.finish_reason is not None:
            break
    return text, part.finish_reason, choice.completion_tokens


@given(ids=st.lists(st.integers(0, 3), min_size=2, max_size=30), cuts=st.sets(st.integers(1, 29)), stop=st.booleans())
def test_text_and_usage_do_not_depend_on_merging(ids: list[int], cuts: set[int], stop: bool) -> None:
    ends = sorted({cut for cut in cuts if cut < len(ids)} | {len(ids)})
    runs = [ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    strings = ["ab", "bcd"] if stop else []
    assert answer(runs, strings) == answer([[i] for i in ids], strings)


@given(
    ids=st.lists(st.integers(0, 256), min_size=1, max_size=30),
    cuts=st.sets(st.integers(1, 29)),
    stop=st.sampled_from([[], ["a"], ["ab", "b"], ["\ufffd"]]),
    ends=st.booleans(),
)
def test_tokens_come_with_their_text_however_they_were_merged(
    ids: list[int], cuts: set[int], stop: list[str], ends: bool
) -> None:
    def tokens_of(sizes: list[int]) -> tuple[str, list[Token]]:
        choice = OutputChoice(0, TextStream(TOKENIZER, stop, track_tokens=True))
        text, tokens, start = "", [], 0
        for end in sizes:
            last = end == len(ids)
            reason: Any = None if not last else "stop" if ends else "length"
            part = choice.advance(Delta(tuple(ids[start:end]), reason, ids[-1] if reason == "stop" else None, 3))
            text, start = text + part.text, end
            tokens += part.tokens
            assert part.text or part.finish_reason or not part.tokens
            assert part.finish_reason or all(token.offset < len(text) for token in tokens)
            if part.finish_reason is not None:
                return text, tokens
        raise AssertionError("it did not end")

    text, tokens = tokens_of([*sorted(cut for cut in cuts if cut < len(ids)), len(ids)])
    assert (text, tokens) == tokens_of(list(range(1, len(ids) + 1)))
    assert [token.token_id for token in tokens] == ids[: len(tokens)]
    if not stop:
        assert len(tokens) == len(ids)


def test_ids_after_a_stop_string_do_not_count() -> None:
    assert answer([[3, 0, 1, 2, 2, 2]], ["ab"]) == ("d", "stop", 3)


def test_the_id_that_ends_the_text_counts_and_does_not_show() -> None:
    assert answer([[3, 3], [1]], []) == ("dd", "stop", 3)
