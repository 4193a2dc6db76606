import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_tokenizers import TOY_TOKENIZERS, metaspace_tokenizer

from mpt_serve.text.detokenizer import IncrementalDetokenizer
from mpt_serve.text.tokenizer import TextTokenizer


def cut(ids: list[int], sizes: list[int]) -> list[list[int]]:
    """Cut ids into chunks of the given sizes, and the rest one by one."""
    chunks = []
    for size in sizes:
        chunks.append(ids[:size])
        ids = ids[size:]
    return chunks + [[i] for i in ids]


def streamed(tokenizer: TextTokenizer, chunks: list[list[int]], skip: bool) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip)
    return [*map(detokenizer.push, chunks), detokenizer.flush()]


@given(ids=st.lists(st.integers(0, 50431), max_size=30), sizes=st.lists(st.integers(0, 5)), skip=st.booleans())
def test_neox_streams_what_decode_gives(neox: TextTokenizer, ids: list[int], sizes: list[int], skip: bool) -> None:
    assert "".join(streamed(neox, cut(ids, sizes), skip)) == neox.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("make", TOY_TOKENIZERS.values(), ids=TOY_TOKENIZERS)
@given(ids=st.lists(st.integers(0, 300), max_size=30), sizes=st.lists(st.integers(0, 5)), skip=st.booleans())
def test_toys_stream_what_decode_gives(make: type, ids: list[int], sizes: list[int], skip: bool) -> None:
    tokenizer = TextTokenizer(make())
    assert "".join(streamed(tokenizer, cut(ids, sizes), skip)) == tokenizer.decode(ids, skip_special_tokens=skip)


@given(text=st.text(max_size=40))
def test_only_complete_characters_are_emitted(neox: TextTokenizer, text: str) -> None:
    ids = neox.encode(text)
    if neox.decode(ids) != text:  # NFC changed it
        text = neox.decode(ids)
    pieces = streamed(neox, [[i] for i in ids], skip=False)
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_unfinished_character_is_flushed(neox: TextTokenizer) -> None:
    first = neox.encode("🎉")[0]
    detokenizer = IncrementalDetokenizer(neox)
    assert not detokenizer.unfinished
    assert detokenizer.push([first]) == ""
    assert detokenizer.unfinished
    assert detokenizer.flush() == "\ufffd"
    assert not detokenizer.unfinished


def test_leading_space_is_text_after_a_prompt() -> None:
    tokenizer = TextTokenizer(metaspace_tokenizer())
    ids = tokenizer.encode("Hello world")
    assert IncrementalDetokenizer(tokenizer).push(ids) == "Hello world"
    assert IncrementalDetokenizer(tokenizer, continues_text=True).push(ids) == " Hello world"


def test_special_tokens_before_the_text_do_not_use_up_its_beginning(chatml_tokenizer: TextTokenizer) -> None:
    detokenizer = IncrementalDetokenizer(chatml_tokenizer)
    assert detokenizer.push(chatml_tokenizer.encode("<|im_start|>Hi<|im_end|>")) == "Hi"
