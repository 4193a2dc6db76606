"""Incremental detokenization."""

import codecs
from collections.abc import Iterable

from mpt_serve.text.tokenizer import TextTokenizer

__all__ = ["IncrementalDetokenizer"]


class IncrementalDetokenizer:
    """Turns ids into text that never has to be taken back.

    Only complete UTF-8 characters are emitted; the bytes of an unfinished one wait for the next ids. The concatenation
    of all that `push` and `flush` return is `TextTokenizer.decode` of all ids.

    continues_text: the ids follow a prompt, so a leading space is text and not the one that the tokenizer itself puts
        before every text.
    """

    def __init__(
        self, tokenizer: TextTokenizer, skip_special_tokens: bool = True, continues_text: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._at_start = not continues_text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def unfinished(self) -> bool:
        """Return whether some bytes of a character wait for the others."""
        return self._decoder.getstate()[0] != b""

    def push(self, ids: Iterable[int]) -> str:
        """Return the text that these ids complete, which may be empty."""
        data = b"".join(self._tokenizer.token_bytes(i) for i in ids if i not in self._skipped)
        if self._at_start and data:
            data = self._tokenizer.strip_leading_space(data)
            self._at_start = False
        return self._decoder.decode(data)

    def flush(self) -> str:
        """Return the replacement character if the last character stayed unfinished, otherwise nothing."""
        return self._decoder.decode(b"", final=True)
