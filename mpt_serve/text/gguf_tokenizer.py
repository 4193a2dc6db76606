"""The tokenizers inside GGUF files: byte-level BPE with its merges, or a SentencePiece model in parts."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from model.gguf.header import GgufHeader
from mpt_serve.text.protobuf import message_field, number_field
from mpt_serve.text.sentencepiece_encoder import Framing, SentencePieceEncoder
from mpt_serve.text.text_encoder import LibraryEncoder, TextEncoder
from mpt_serve.text.token_bytes import TokenizerError, is_byte_level

__all__ = ["gguf_chat_template", "load_gguf_tokenizer"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_NAMES = {
    "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "sep_token": "seperator", "pad_token": "padding",
    "cls_token": "cls", "mask_token": "mask",
}  # fmt: skip
_ENDS = ("eos", "eot", "eom")
# How llama.cpp names the ways to split a text into words. GPT-NeoX's is GPT-2's, after a normalisation.
_NEOX = (None, "default", "mpt", "gpt-neox", "olmo")
_SPACE = "\u2581"


def load_gguf_tokenizer(header: GgufHeader) -> tuple[Tokenizer, TextEncoder, Mapping[str, str], Sequence[int]]:
    """Return a file's tokenizer, what encodes by it, its special tokens by name, and the ids that end a text.

    Raises TokenizerError for a file without one, and for one of a kind that is not read exactly.
    """
    data = _Data(header)
    kind = data.get("model")
    if kind == "gpt2":
        tokenizer = _byte_level(data)
        encoder: TextEncoder = LibraryEncoder(tokenizer)
    elif kind in ("llama", "t5"):
        tokenizer, encoder = _sentencepiece(data, unigram=kind == "t5")
    else:
        raise data.error(
            "has no tokenizer"
            if kind is None
            else f"has a tokenizer of the kind {str(kind)[:60]!r}; gpt2 and llama are read. Use a safetensors copy"
        )
    return tokenizer, encoder, data.special_tokens(), data.end_ids()


def gguf_chat_template(header: GgufHeader) -> str | None:
    """Return the chat template of a file; None if it has none."""
    template = header.metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) else None


class _Data:
    """The metadata of a tokenizer, checked where it is used."""

    def __init__(self, header: GgufHeader) -> None:
        self._header = header
        self.tokens: list[str] = self._list("tokens", str)
        self.types: list[int] = self._list("token_type", int) or [_NORMAL] * len(self.tokens)
        if len(self.types) != len(self.tokens) or len(set(self.tokens)) != len(self.tokens):
            raise self.error("names a token twice, or has another number of token types than of tokens")

    def get(self, name: str, default: Any = None) -> Any:
        return self._header.metadata.get(f"tokenizer.ggml.{name}", default)

    def _list(self, name: str, kind: type) -> list[Any]:
        values = self.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
            raise self.error(f"has tokenizer.ggml.{name} that is no list of {kind.__name__}")
        return values

    def merges(self) -> list[tuple[str, str]]:
        pairs = [tuple(merge.split(" ")) for merge in self._list("merges", str)]
        if any(len(pair) != 2 for pair in pairs):
            raise self.error("has a merge that does not name two tokens")
        return pairs

    def scores(self) -> list[float]:
        scores: list[float] = self._list("scores", float) or [0.0] * len(self.tokens)
        if len(scores) != len(self.tokens):
            raise self.error("has another number of scores than of tokens")
        return scores

    def special_id(self, name: str) -> int | None:
        value = self.get(f"{name}_token_id")
        if name == "seperator" and value is None:  # as llama.cpp spelled it first
            value = self.get("separator_token_id")
        return value if isinstance(value, int) and 0 <= value < len(self.tokens) else None

    def special_tokens(self) -> dict[str, str]:
        ids = {name: self.special_id(key) for name, key in _NAMES.items()}
        return {name: self.tokens[i] for name, i in ids.items() if i is not None}

    def end_ids(self) -> list[int]:
        ids = [self.special_id(name) for name in _ENDS]
        ids += [i for i, token in enumerate(self.tokens) if token == "<|im_end|>"]
        return [i for i in ids if i is not None]

    def around(self, add_bos: bool) -> tuple[list[int], list[int]]:
        """Return the ids that begin and end every text."""
        bos, eos = self.special_id("bos"), self.special_id("eos")
        before = [bos] if self.get("add_bos_token", add_bos) and bos is not None else []
        return before, [eos] if self.get("add_eos_token", False) and eos is not None else []

    def added(self, produced: frozenset[str] | None) -> Iterator[AddedToken]:
        """Yield the tokens that text is searched for. produced: those that the model makes by itself."""
        special = {self.special_id(name) for name in (*_NAMES.values(), *_ENDS)}
        for i, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True)):
            control = kind == _CONTROL or (i in special and kind != _NORMAL) or (i in special and produced is not None)
            # Older files have all tokens as normal ones: one that no merge makes can only come from the text itself.
            loose = kind == _NORMAL and produced is not None and token not in produced
            if token and (control or loose or kind == _USER_DEFINED):
                yield AddedToken(token, special=control, normalized=False)

    def error(self, what: str) -> TokenizerError:
        return TokenizerError(f"{self._header.path} {what}")


def _byte_level(data: _Data) -> Tokenizer:
    pre = data.get("pre")
    if pre not in (*_NEOX, "gpt-2"):
        raise data.error(
            f"splits texts into words as {str(pre)[:60]!r} does, which is not known exactly. Put the tokenizer.json of"
            " the model beside its config.json in a folder, with this file as its weights"
        )
    merges = data.merges()
    known = dict.fromkeys(token for token, kind in zip(data.tokens, data.types, strict=True) if kind != _UNUSED)
    vocab = {token: i for i, token in enumerate(data.tokens) if token in known}
    merges = [pair for pair in merges if all(piece in vocab for piece in (*pair, "".join(pair)))]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    if pre != "gpt-2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(data.get("add_space_prefix", False)))
    tokenizer.decoder = decoders.ByteLevel()
    letters = {token for token in vocab if len(token) == 1 and is_byte_level(token)}
    tokenizer.add_tokens(list(data.added(frozenset(letters | {a + b for a, b in merges}))))
    before, after = data.around(add_bos=False)
    if before or after:
        names = [*(data.tokens[i] for i in before), "$A", *(data.tokens[i] for i in after)]
        ids = [(data.tokens[i], i) for i in dict.fromkeys((*before, *after))]
        tokenizer.post_processor = processors.TemplateProcessing(single=names, pair=None, special_tokens=ids)
    return tokenizer


def _sentencepiece(data: _Data, unigram: bool) -> tuple[Tokenizer, SentencePieceEncoder]:
    """Return a vocabulary and the encoder of the model that the file was made from, as far as the file has it."""
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(data.tokens)}, merges=[]))
    prefix = bool(data.get("add_space_prefix", True))
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    tokenizer.add_tokens(list(data.added(None)))
    before, after = data.around(add_bos=True)
    framing = Framing(prefix="each" if prefix else "none", before=before, after=after)
    try:
        return tokenizer, SentencePieceEncoder(tokenizer, _model(data, unigram, prefix), framing)
    except RuntimeError as error:
        raise data.error(f"has a SentencePiece model that the library refuses: {str(error).strip()[:200]}") from None


def _model(data: _Data, unigram: bool, prefix: bool) -> bytes:
    """Return the bytes of a SentencePiece model: field 1 are its pieces, 2 how it was trained, 3 how it normalises."""
    out = bytearray()
    for token, score, kind in zip(data.tokens, data.scores(), data.types, strict=True):
        piece = message_field(1, token.encode()) + b"\x15" + struct.pack("<f", score) + number_field(3, kind)
        out += message_field(1, piece)
    unknown = data.special_id("unknown")
    trainer = number_field(3, 1 if unigram else 2) + number_field(35, int(_BYTE in data.types))
    trainer += number_field(40, data.types.index(_UNKNOWN) if _UNKNOWN in data.types else unknown or 0)
    charsmap = bytes(value & 0xFF for value in data.get("precompiled_charsmap", []))
    normalizer = message_field(1, b"identity") + message_field(2, charsmap) + number_field(3, int(prefix))
    normalizer += number_field(4, int(bool(data.get("remove_extra_whitespaces", False)))) + number_field(5, 1)
    return bytes(out) + message_field(2, trainer) + message_field(3, normalizer)
