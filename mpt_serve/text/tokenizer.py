"""Text to ids and back, with the tokenizer of a checkpoint folder."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mpt_serve.text.control_tokens import ControlTokens
from mpt_serve.text.sentencepiece_encoder import SentencePieceEncoder
from mpt_serve.text.text_encoder import LibraryEncoder, TextEncoder
from mpt_serve.text.token_bytes import TokenBytes, TokenizerError
from mpt_serve.text.tokenizer_folder import has_tokenizer, load_tokenizer

__all__ = ["TextTokenizer", "TokenizerError"]

CHATML_MARKERS = ("<|im_start|>", "<|im_end|>")

_NFC_SHRINKAGE = 4  # NFC joins at most four characters into one
# The library would start a pool of threads for batches, and warn of it whenever the process forks; ours have one text.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class TextTokenizer:
    """A checkpoint's tokenizer. Thread-safe: nothing in it changes after construction."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        eos_token_ids: Sequence[int] = (),
        encoder: TextEncoder | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        """Wrap the library's tokenizer.

        encoder: what makes ids of text, where that is not the library. special_tokens: texts by name, for templates.
        """
        tokenizer.no_truncation()  # a tokenizer.json may carry both from training, and either would change prompts
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._encoder = encoder or LibraryEncoder(tokenizer)
        self.special_tokens = dict(special_tokens or {})
        self._token_bytes = TokenBytes(tokenizer)
        self.vocab_len = len(self._token_bytes)
        added = tokenizer.get_added_tokens_decoder()
        self._added_tokens: dict[int, str] = {token_id: token.content for token_id, token in added.items()}
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.max_chars_per_token = _max_chars_per_token(tokenizer, self._token_bytes)
        self.eos_token_ids = tuple(dict.fromkeys(i for i in eos_token_ids if 0 <= i < self.vocab_len))
        self._control_tokens = cache(
            lambda ids: ControlTokens(tokenizer, self._encoder, {i: self.token(i) for i in ids})
        )

    @classmethod
    def from_folder(cls, path: str | Path) -> "TextTokenizer":
        """Load a checkpoint folder's tokenizer. Raises TokenizerError."""
        tokenizer, encoder, special_tokens, eos_token_ids = load_tokenizer(Path(path))
        return cls(tokenizer, eos_token_ids, encoder, special_tokens)

    @classmethod
    def find(cls, path: str | Path) -> "TextTokenizer | None":
        """Load a checkpoint folder's tokenizer; return None if it has none. Raises TokenizerError for a damaged one."""
        return cls.from_folder(path) if has_tokenizer(Path(path)) else None

    @classmethod
    def from_serialized(cls, text: str) -> "TextTokenizer":
        """Return a tokenizer that encodes as the one whose `serialized` is given."""
        state: dict[str, Any] = json.loads(text)
        tokenizer = Tokenizer.from_str(state["tokenizer"])
        return cls(
            tokenizer, (), SentencePieceEncoder.from_serialized(tokenizer, state) if "sentencepiece" in state else None
        )

    def encode(self, text: str, add_special_tokens: bool = True, parse_special_tokens: bool = True) -> list[int]:
        """Return the text's ids.

        add_special_tokens: the tokenizer adds its own, such as one that begins every text.
        parse_special_tokens: `<|endoftext|>` and other control tokens in the text become their special ids; otherwise
            they are ordinary text.

        Other threads run meanwhile.
        """
        if not parse_special_tokens:
            return self.control_tokens().encode(text, add_special_tokens)
        return self._encoder.encode(text, add_special_tokens)

    def control_tokens(self, template: str = "") -> ControlTokens:
        """Return the tokens that direct the model rather than spell text.

        These are the special ones, those that end a text, ChatML's, and other added tokens that the chat template's
        source names.
        """
        return self._control_tokens(self._control_ids(template))

    def _control_ids(self, template: str) -> frozenset[int]:
        chatml = {self.token_id(marker) for marker in CHATML_MARKERS}
        added = self._tokenizer.get_added_tokens_decoder()
        named = {i for i, token in added.items() if token.special or i in chatml or token.content in template}
        # The end of text may be a word of the model's vocabulary that nobody declared.
        named |= {i for i in self.eos_token_ids if i in added or self._spells(i)}
        return frozenset(i for i in named if self.token(i).strip())

    def _spells(self, token_id: int) -> bool:
        """Return whether the token's own text becomes the token."""
        return self.encode(self.token(token_id), add_special_tokens=False) == [token_id]

    def token(self, token_id: int) -> str:
        """Return the token as the vocabulary writes it, such as `Ġthe`; an empty string for an id without a token."""
        added = self._added_tokens.get(token_id)
        return added if added is not None else self._tokenizer.id_to_token(token_id) or ""

    @property
    def serialized(self) -> str:
        """Return a text for `from_serialized` in another process."""
        return self._encoder.serialized()

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Return the text of any ids: bytes that are not UTF-8 become U+FFFD, ids without a token add nothing."""
        skipped = self.special_ids if skip_special_tokens else frozenset()
        data = b"".join(self._token_bytes[i] for i in ids if i not in skipped)
        return self._token_bytes.strip_leading_space(data).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that the token adds to a text; none for an id without a token."""
        return self._token_bytes[token_id]

    def text_token_bytes(self) -> list[bytes | None]:
        """Return the bytes that each id below vocab_len adds to a text; None for special ids and ids without bytes."""
        return [None if i in self.special_ids else data or None for i, data in enumerate(self._token_bytes)]

    def strip_leading_space(self, data: bytes) -> bytes:
        """Return a text's bytes without the space that the tokenizer puts before every text, if it does."""
        return self._token_bytes.strip_leading_space(data)

    def token_id(self, token: str) -> int | None:
        """Return the id of a token such as `<|im_end|>`; None if there is no such token."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def spellings(self, words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
        """Return the sequences of ids to forbid so that the words are not generated, without duplicates.

        A word has one tokenization at the start of a text and another one after a space, so each word gives two
        sequences: with a leading space and without, whatever spaces it was given with. Other tokenizations of it
        remain possible.
        """
        bare = [word.lstrip(" ") for word in words]
        ids = (tuple(self.encode(prefix + word, add_special_tokens=False)) for word in bare for prefix in ("", " "))
        return tuple(dict.fromkeys(sequence for sequence in ids if sequence))


def _max_chars_per_token(tokenizer: Tokenizer, token_bytes: TokenBytes) -> int | None:
    """Return the most characters of input that one id can stand for; None if there is no bound.

    Without the byte-level alphabet one unknown-token id, or a normalizer, may stand for any number of characters.
    """
    normalizer = tokenizer.normalizer
    if not token_bytes.byte_level or not (normalizer is None or type(normalizer).__name__ == "NFC"):
        return None
    return max(map(len, token_bytes), default=1) * (1 if normalizer is None else _NFC_SHRINKAGE)
