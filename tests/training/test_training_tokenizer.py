"""The tokenizer is lossless and cuts text where copying needs it to."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from training.corpus import DIALOGUES, draw_example
from training.dialogue import pieces, text_of
from training.tokenizer import SPECIAL_TOKENS, train_tokenizer


def test_special_tokens_come_first(tokenizer: Tokenizer) -> None:
    assert [tokenizer.id_to_token(i) for i in range(4)] == list(SPECIAL_TOKENS)
    assert len(tokenizer.encode("<|im_start|>user\nHi<|im_end|>").ids) >= 4


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    if not any(token in text for token in SPECIAL_TOKENS):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_digits_are_separate_tokens(tokenizer: Tokenizer) -> None:
    assert [tokenizer.decode([i]) for i in tokenizer.encode("12345").ids] == list("12345")


def test_a_name_has_the_same_tokens_everywhere(tokenizer: Tokenizer) -> None:
    name = tokenizer.encode("Zorkoflin").ids
    for around in ('"{}"', "I am {}.", "{}: hello", "\n{}!", "({})"):
        before, after = around.split("{}")
        assert (
            tokenizer.encode(before + "Zorkoflin" + after).ids[-len(name) - len(tokenizer.encode(after).ids) :][
                : len(name)
            ]
            == name
        )


def test_pieces_have_the_tokens_of_the_whole_text(tokenizer: Tokenizer) -> None:
    for task in DIALOGUES:
        for index in range(5):
            example = draw_example(6, index, task)
            piecewise = [token for piece in pieces(example) for token in tokenizer.encode(piece.text).ids]
            assert piecewise == tokenizer.encode(text_of(example)).ids


def test_training_is_deterministic(tokenizer: Tokenizer) -> None:
    again = train_tokenizer(seed=1, documents=300, vocab_size=tokenizer.get_vocab_size())
    assert again.to_str() == tokenizer.to_str()
