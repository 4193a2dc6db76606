"""Words as the ids that would write them."""

from collections.abc import Iterable

from mpt_serve.text.tokenizer import TextTokenizer

__all__ = ["spellings"]


def spellings(tokenizer: TextTokenizer, words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    """Return every sequence of ids to forbid so that the words are not written, without repetitions.

    A word is spelled in one way at the start of a text and in another after a space, so each has two sequences: with
    a leading space and without, whatever spaces it came with. Other cuts of the same letters into tokens stay possible.
    """
    bare = [word.lstrip(" ") for word in words]
    ids = (tuple(tokenizer.encode(prefix + word, add_special_tokens=False)) for word in bare for prefix in ("", " "))
    return tuple(dict.fromkeys(sequence for sequence in ids if sequence))
