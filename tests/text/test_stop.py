import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpt_serve.text.stop_strings import StopMatcher

TEXT = st.text(alphabet="abé", max_size=20)
STOPS = st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=4)


def naive(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Look at the text as it is after each character."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


def run(pieces: list[str], stops: list[str], include: bool) -> tuple[list[str], str | None]:
    matcher = StopMatcher(stops, include)
    emitted = []
    for piece in pieces:
        text, matched = matcher.push(piece)
        emitted.append(text)
        if matched is not None:
            return emitted, matched
    rest, matched = matcher.finish()
    return [*emitted, rest], matched


@given(text=TEXT, stops=STOPS, cuts=st.lists(st.integers(0, 20), max_size=6), include=st.booleans())
def test_agrees_with_a_naive_search_however_the_text_is_cut(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    ends = [*sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    emitted, matched = run(pieces, stops, include)
    assert ("".join(emitted), matched) == naive(text, stops, include)


@given(text=TEXT, stops=STOPS.filter(bool))
def test_nothing_that_may_become_a_match_is_emitted(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    sent = ""
    for i, char in enumerate(text, 1):
        emitted, matched = matcher.push(char)
        sent += emitted
        if matched is not None:
            return
        held = text[:i].removeprefix(sent)
        assert all(not stop.startswith(sent[-n:] + held) for stop in stops for n in range(1, len(sent) + 1))


def test_text_is_emitted_at_once_when_no_stop_string_can_begin_in_it() -> None:
    assert StopMatcher(["###"]).push("Hello #1") == ("Hello #1", None)
    assert StopMatcher(["###"]).push("Hello ##") == ("Hello ", None)


def test_nothing_is_held_back_without_stop_strings() -> None:
    matcher = StopMatcher([])
    assert matcher.push("any") == ("any", None)
    assert matcher.finish() == ("", None)


def test_the_first_pieces_are_not_searched() -> None:
    matcher = StopMatcher(["ab"], unsearched=2)
    assert [matcher.push(piece) for piece in ("ab", "a", "b", "a")] == [
        ("ab", None),
        ("a", None),
        ("b", None),
        ("", None),
    ]
    assert matcher.finish("b") == ("", "ab")


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""])


@given(
    text=TEXT,
    stops=STOPS.filter(bool),
    until=st.text(alphabet="ab\u00e9", min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 20), max_size=6),
)
def test_nothing_is_searched_from_a_string_on(text: str, stops: list[str], until: str, cuts: list[int]) -> None:
    ends = [*sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    matcher = StopMatcher(stops, until=until)
    sent, matched = "", None
    for piece in pieces:
        emitted, matched = matcher.push(piece)
        sent += emitted
        if matched is not None:
            break
    if matched is None:
        rest, matched = matcher.finish()
        sent += rest
    shown, first = naive(text, [*stops, until], False)
    assert (sent, matched) == ((text, None) if first == until else (shown, first))
