"""Text to ids by the `tokenizers` library."""

import json
from collections.abc import Mapping
from typing import Protocol

from tokenizers import Tokenizer

__all__ = ["LibraryEncoder", "TextEncoder"]


class TextEncoder(Protocol):
    """Encodes text, for a tokenizer and for the copies that know its control tokens by other names. Thread-safe."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return the text's ids, while other threads run."""

    def renamed(self, tokenizer: Tokenizer, aliases: Mapping[str, str]) -> "TextEncoder":
        """Return the encoder of a copy of the tokenizer, whose tokens have other names: `aliases` by text."""

    def serialized(self) -> str:
        """Return a text from which another process makes the encoder."""


class LibraryEncoder:
    """Encodes as the library does."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return the text's ids.

        The library keeps the interpreter's lock in `encode`, but not in this call, which takes a third of the time as
        well, because it leaves out the offsets.
        """
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def renamed(self, tokenizer: Tokenizer, aliases: Mapping[str, str]) -> "LibraryEncoder":
        """Return the encoder of a copy."""
        return LibraryEncoder(tokenizer)

    def serialized(self) -> str:
        """Return a text for `TextTokenizer.from_serialized`."""
        return json.dumps({"tokenizer": self._tokenizer.to_str()})
