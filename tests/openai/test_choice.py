"""A choice says the same however the engine's ids were merged on their way."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from mpt_serve.engine.request import Delta
from mpt_serve.openai.choice import Choice, ChoicePart
from mpt_serve.text.stop import StopMatcher


class Letters:
    """Id n is the n-th letter."""

    def push(self, ids: Sequence[int]) -> str:
        return "".join(chr(ord("a") + i) for i in ids)

    def flush(self) -> str:
        return ""


def answer(runs: Sequence[Sequence[int]], stop: Sequence[str]) -> tuple[str, str | None, int]:
    """The text, the reason and the completion tokens of ids that come in these runs; the last one ends the text."""
    choice = Choice(0, prompt_tokens=3, detokenizer=Letters(), matcher=StopMatcher(stop))
    text, part = "", ChoicePart(0, "")
    for i, run in enumerate(runs):
        last = i == len(runs) - 1
        part = choice.advance(Delta(tuple(run), "stop" if last else None, run[-1] if last else None, 3))
        text += part.text
        if part.finish_reason is not None:
            break
    return text, part.finish_reason, choice.usage.completion_tokens


@given(ids=st.lists(st.integers(0, 3), min_size=2, max_size=30), cuts=st.sets(st.integers(1, 29)), stop=st.booleans())
def test_text_and_usage_do_not_depend_on_merging(ids: list[int], cuts: set[int], stop: bool) -> None:
    ends = sorted({cut for cut in cuts if cut < len(ids)} | {len(ids)})
    runs = [ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    strings = ["ab", "bcd"] if stop else []
    assert answer(runs, strings) == answer([[i] for i in ids], strings)


def test_ids_after_a_stop_string_do_not_count() -> None:
    assert answer([[3, 0, 1, 2, 2, 2]], ["ab"]) == ("d", "stop", 3)


def test_the_id_that_ends_the_text_counts_and_does_not_show() -> None:
    assert answer([[3, 3], [1]], []) == ("dd", "stop", 3)
