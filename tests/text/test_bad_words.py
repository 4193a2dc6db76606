import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_tokenizers import metaspace_tokenizer

from mpt_serve.text.tokenizer import TextTokenizer


@pytest.mark.parametrize("word", ["cat", " cat", "   cat"])
def test_a_word_has_a_spelling_after_a_space_and_one_without(neox: TextTokenizer, word: str) -> None:
    assert {neox.decode(ids) for ids in neox.spellings([word])} == {"cat", " cat"}


@given(words=st.lists(st.text(min_size=1, max_size=6), max_size=5))
def test_every_spelling_writes_a_word(neox: TextTokenizer, words: list[str]) -> None:
    found = neox.spellings(words)
    assert len(set(found)) == len(found)
    assert all(found)
    written = {neox.decode(ids).lstrip(" ") for ids in found}
    plain = {neox.decode(neox.encode(word)).lstrip(" ") for word in words}
    assert {text for text in written if text} <= {text for text in plain if text}


def test_repeated_words_are_spelled_once(neox: TextTokenizer) -> None:
    assert neox.spellings(["cat", " cat", "cat"]) == neox.spellings(["cat"])


def test_tokenizers_that_put_a_space_before_every_text() -> None:
    tokenizer = TextTokenizer(metaspace_tokenizer())
    assert tuple(tokenizer.encode("a")) in tokenizer.spellings(["a"])
