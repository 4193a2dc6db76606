"""The bytes that each id of a tokenizer adds to a text.

Decoding through bytes makes the text of a sequence the concatenation of its tokens, whatever chunks they arrive in. The
decoders of the `tokenizers` library agree with it on every text, and differ only in how some of them show bytes that
are not UTF-8.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

from mpt_serve.errors import MptServeError

__all__ = ["TokenBytes", "TokenizerError", "is_byte_level"]

_SPACE = "\u2581"  # SentencePiece's visible space
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenizerError(MptServeError, ValueError):
    """The folder has no usable tokenizer; the message says what to add."""


class TokenBytes:
    """A read-only table from id to bytes, for any integer. Raises TokenizerError for an unknown decoder."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        steps = _decoder_steps(tokenizer)
        vocab: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        self._table = [b""] * (max(vocab.values(), default=-1) + 1)
        for token, token_id in vocab.items():
            self._table[token_id] = _bytes_of(token, steps)
        self.byte_level = "ByteLevel" in steps
        self._leading_space = _drops_leading_space(steps)

    def __getitem__(self, token_id: int) -> bytes:
        return self._table[token_id] if 0 <= token_id < len(self._table) else b""

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._table)

    def strip_leading_space(self, data: bytes) -> bytes:
        """Remove one leading space if the tokenizer itself puts one before every text."""
        return data.removeprefix(b" ") if self._leading_space else data


def _decoder_steps(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """Return the decoder's steps by type; without a decoder, tokens are joined with spaces."""
    if tokenizer.decoder is None:
        return {"SpaceJoined": {}}
    decoder = json.loads(tokenizer.decoder.__getstate__())
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    known = {"ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}
    for step in steps:
        if step["type"] not in known:
            raise TokenizerError(
                f"tokenizer.json has the decoder {step['type']}, which no MPT tokenizer uses; known are"
                f" {', '.join(sorted(known))}"
            )
    return {step["type"]: step for step in steps}


def _bytes_of(token: str, steps: dict[str, dict[str, Any]]) -> bytes:
    if "ByteLevel" in steps:
        # Added tokens are plain text; a character outside the byte alphabet distinguishes them from the others.
        if is_byte_level(token):
            return bytes(_BYTE_OF_CHAR[char] for char in token)
        return token.encode()
    if "SpaceJoined" in steps:
        return b" " + token.encode()
    if "ByteFallback" in steps and (match := _BYTE_TOKEN.fullmatch(token)):
        return bytes.fromhex(match[1])
    if "Metaspace" in steps:
        return token.replace(steps["Metaspace"].get("replacement", _SPACE), " ").encode()
    if "Replace" in steps and "String" in steps["Replace"]["pattern"]:
        return token.replace(steps["Replace"]["pattern"]["String"], steps["Replace"]["content"]).encode()
    return token.encode()


def is_byte_level(token: str) -> bool:
    """Return whether a token consists of the characters that stand for bytes in GPT-2's vocabularies."""
    return all(char in _BYTE_OF_CHAR for char in token)


def _drops_leading_space(steps: dict[str, dict[str, Any]]) -> bool:
    if "Metaspace" in steps:
        return bool(steps["Metaspace"].get("prepend_scheme", "always") != "never")
    if "Strip" in steps:
        return bool(steps["Strip"]["content"] == " " and steps["Strip"]["start"] > 0)
    return "SpaceJoined" in steps


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's characters for the 256 bytes: printable Latin-1 as itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return alphabet


_BYTE_OF_CHAR = _byte_alphabet()
