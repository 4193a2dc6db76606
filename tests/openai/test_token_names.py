import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpt_serve.engine.request import TokenLogprobs
from mpt_serve.openai.logprobs import completion_logprobs
from mpt_serve.openai.output_choice import Token
from mpt_serve.openai.token_names import TokenNames

TABLE = [b"a", "é".encode(), b"\xf0\x9f", b" \\\xff", b"", b"  ", b"  ", b"  ", b"<|endoftext|>", b"\n"]


def names(as_ids: bool = False) -> TokenNames:
    return TokenNames(TABLE.__getitem__, as_ids)


@pytest.mark.parametrize(
    ("token_id", "name"),
    list(
        enumerate(["a", "é", r"bytes:\xf0\x9f", r"bytes: \x5c\xff", "token_id:4", *["  "] * 3, "<|endoftext|>", "\n"])
    ),
)
def test_names(token_id: int, name: str) -> None:
    assert names().name(token_id) == name
    assert names(as_ids=True).name(token_id) == f"token_id:{token_id}"
    assert bytes(names().utf8(token_id)) == TABLE[token_id]


def test_bytes_can_be_read_back() -> None:
    assert names().name(3).removeprefix("bytes:").encode().decode("unicode_escape").encode("latin-1") == TABLE[3]


@given(st.permutations(range(len(TABLE))), st.integers(0, len(TABLE)), st.booleans())
def test_no_alternative_is_lost_to_another_of_the_same_text(order: list[int], count: int, as_ids: bool) -> None:
    own = order[-1]
    known = TokenLogprobs(-5.0, len(order), tuple((token_id, -0.1 * rank) for rank, token_id in enumerate(order)))
    lists = completion_logprobs([Token(own, 0, known)], count, names(as_ids))
    [top] = lists["top_logprobs"]
    assert len(top) == len({own, *order[:count]})
    assert top[lists["tokens"][0]] == known.logprob


def test_of_equal_texts_the_likelier_has_the_name() -> None:
    known = TokenLogprobs(-1.0, 1, ((5, -1.0), (7, -2.0), (6, -3.0)))
    [top] = completion_logprobs([Token(5, 0, known)], 3, names())["top_logprobs"]
    assert top == {"  ": -1.0, "token_id:7": -2.0, "token_id:6": -3.0}
