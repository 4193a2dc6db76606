"""Text to ids by the `sentencepiece` library, for checkpoints that have its model instead of a tokenizer.json.

A conversion to another library would agree on most texts only: SentencePiece has its own normalisation and its own
order of merges. As in the classes that such checkpoints were trained with, a text is cut at its added tokens, and what
is between them is encoded by the model.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer

from mpt_serve.text.protobuf import BYTES, fields, message_field

__all__ = ["Framing", "SentencePieceEncoder"]

_NO_PREFIX = bytes((0x1A, 2, 0x18, 0))  # normalizer_spec { add_dummy_prefix: false }; what comes last applies


@dataclass(frozen=True)
class Framing:
    """What encoding adds to a text.

    prefix: which parts between added tokens begin with the space that the model puts before a text: each, the text's
        first, or none. before, after: ids around every text.
    """

    prefix: Literal["each", "first", "none"] = "each"
    before: Sequence[int] = ()
    after: Sequence[int] = ()


class SentencePieceEncoder:
    """Encodes with a SentencePiece model. tokenizer: its vocabulary and its added tokens. model: the file's bytes."""

    def __init__(self, tokenizer: Tokenizer, model: bytes, framing: Framing) -> None:
        self._tokenizer, self._model, self._framing = tokenizer, model, framing
        bare = model + _NO_PREFIX
        self._first = SentencePieceProcessor(model_proto=bare if framing.prefix == "none" else model)
        self._others = SentencePieceProcessor(model_proto=bare) if framing.prefix == "first" else self._first
        added = tokenizer.get_added_tokens_decoder()
        self._ids = {token.content: token_id for token_id, token in added.items()}
        # Of two that begin at the same character the longer one counts.
        tokens = sorted(added.values(), key=lambda token: -len(token.content))
        self._added = re.compile("|".join(map(_pattern, tokens)) or r"(?!)")

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return the text's ids; both libraries release the interpreter's lock."""
        ids = list(self._framing.before) if add_special_tokens else []
        end = 0
        for match in self._added.finditer(text):
            ids += self._encode_part(text[end : match.start()], end == 0)
            ids.append(self._ids[match[match.lastindex or 0]])
            end = match.end()
        ids += self._encode_part(text[end:], end == 0)
        return [*ids, *self._framing.after] if add_special_tokens else ids

    def _encode_part(self, text: str, first: bool) -> list[int]:
        if not text:
            return []
        ids: list[int] = (self._first if first else self._others).encode(text)
        return ids

    def renamed(self, tokenizer: Tokenizer, aliases: Mapping[str, str]) -> "SentencePieceEncoder":
        """Return the encoder of a copy, whose model does not find the renamed pieces in ordinary text."""
        names = {text.encode(): alias.encode() for text, alias in aliases.items()}
        return SentencePieceEncoder(tokenizer, _rename_pieces(self._model, names), self._framing)

    def serialized(self) -> str:
        """Return a text for `TextTokenizer.from_serialized`."""
        model = base64.b64encode(self._model).decode()
        framing = {**vars(self._framing), "before": list(self._framing.before), "after": list(self._framing.after)}
        return json.dumps({"tokenizer": self._tokenizer.to_str(), "sentencepiece": model, "framing": framing})

    @classmethod
    def from_serialized(cls, tokenizer: Tokenizer, state: Mapping[str, Any]) -> "SentencePieceEncoder":
        """Return the encoder from what `serialized` wrote."""
        return cls(tokenizer, base64.b64decode(state["sentencepiece"]), Framing(**state["framing"]))


def _pattern(token: AddedToken) -> str:
    text = f"({re.escape(token.content)})"
    if token.single_word:
        text = rf"(?<!\w){text}(?!\w)"
    return (r"\s*" if token.lstrip else "") + text + (r"\s*" if token.rstrip else "")


def _rename_pieces(model: bytes, names: Mapping[bytes, bytes]) -> bytes:
    """Return the bytes of a model whose pieces have other names.

    The pieces are the model's field 1, and a piece's text is its own field 1.
    """
    out = bytearray()
    for field, whole, content in fields(model):
        if field != _FIRST:
            out += whole
            continue
        piece = b"".join(
            message_field(1, names[text]) if inner == _FIRST and text in names else part
            for inner, part, text in fields(content)
        )
        out += message_field(1, piece)
    return bytes(out)


_FIRST = 1 << 3 | BYTES
