"""Bad words as sequences of ids."""

from collections.abc import Iterable

from mpt_serve.text.tokenizer import TextTokenizer

__all__ = ["spellings"]


def spellings(tokenizer: TextTokenizer, words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    """Return the sequences of ids to forbid so that the words are not generated, without duplicates.

    A word has one tokenization at the start of a text and another one after a space, so each word gives two sequences:
    with a leading space and without, whatever spaces it was given with. Other tokenizations of it remain possible.
    """
    bare = [word.lstrip(" ") for word in words]
    ids = (tuple(tokenizer.encode(prefix + word, add_special_tokens=False)) for word in bare for prefix in ("", " "))
    return tuple(dict.fromkeys(sequence for sequence in ids if sequence))
