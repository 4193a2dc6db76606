"""The SentencePiece models of checkpoint folders: which classes of tokenizers they are for, and what those add."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, models

from mpt_serve.text.sentencepiece_encoder import Framing, SentencePieceEncoder
from mpt_serve.text.special_tokens import SpecialTokens, read_special_tokens
from mpt_serve.text.token_bytes import TokenizerError
from mpt_serve.text.tokenizer_files import named_class, read_json_object, require_no_lfs_pointer

__all__ = ["differs_from_model", "find_sentencepiece", "load_sentencepiece"]

_FILES = ("tokenizer.model", "spiece.model")
_SPACE = "\u2581"
_SAMPLES = ("Hello world", "a  b", " def f(x):\n\treturn x", "Xin chào", "日本 １２ ﬁ é e\u0301", "🎉 ")
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")


@dataclass(frozen=True)
class _Class:
    """What a class adds to SentencePiece where tokenizer_config.json does not say otherwise."""

    legacy: bool  # the model's space before a text begins each part between special tokens
    add_bos: bool


_PLAIN = _Class(legacy=True, add_bos=False)
_CLASSES: Mapping[str | None, _Class] = {
    None: _PLAIN,
    "PreTrainedTokenizer": _PLAIN,
    "TokenizersBackend": _PLAIN,
    "ReplitLMTokenizer": _PLAIN,
    "SEABPETokenizer": _Class(legacy=True, add_bos=True),
    "LlamaTokenizer": _Class(legacy=False, add_bos=False),  # as transformers reads it
}


def find_sentencepiece(folder: Path) -> Path | None:
    """Return the SentencePiece model of a folder whose class does no more than `load_sentencepiece` does."""
    return _file(folder) if named_class(folder) in _CLASSES else None


def differs_from_model(tokenizer: Tokenizer, folder: Path) -> bool:
    """Return whether a tokenizer cuts some text into other pieces than the folder's SentencePiece model.

    False for a folder without one. Raises TokenizerError for a damaged one.
    """
    file = _file(folder)
    if file is None:
        return False
    processor = _processor(file, file.read_bytes())
    return any(
        tokenizer.encode(text, add_special_tokens=False).tokens != processor.encode(text, out_type=str)
        for text in _SAMPLES
    )


def _file(folder: Path) -> Path | None:
    return next((folder / name for name in _FILES if (folder / name).is_file()), None)


def load_sentencepiece(file: Path) -> tuple[Tokenizer, SentencePieceEncoder, SpecialTokens]:
    """Return a model's vocabulary with the added tokens of its folder, its encoder, and the special tokens.

    Raises TokenizerError for a file that is no SentencePiece model.
    """
    require_no_lfs_pointer(file)
    data = file.read_bytes()
    processor = _processor(file, data)
    pieces = {processor.id_to_piece(i): i for i in range(processor.vocab_size())}
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=[]))
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if processor.normalize("a").startswith(_SPACE):  # it puts a space before every text
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    folder, name = file.parent, named_class(file.parent)
    special = read_special_tokens(folder, None if name in _CODE_AND_LLAMA else _own_tokens(processor))
    special.add_to(tokenizer)
    framing = _framing(tokenizer, special, read_json_object(folder / "tokenizer_config.json"), _CLASSES[name])
    return tokenizer, SentencePieceEncoder(tokenizer, data, framing), special


_CODE_AND_LLAMA = frozenset({"ReplitLMTokenizer", "SEABPETokenizer", "LlamaTokenizer"})  # have defaults of their own


def _processor(file: Path, data: bytes) -> SentencePieceProcessor:
    try:
        return SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        if _TIKTOKEN_LINE.match(data):
            raise TokenizerError(
                f"{file} is a vocabulary of tiktoken, not a SentencePiece model. Save the tokenizer as tokenizer.json"
                " (transformers' TikTokenConverter does it)"
            ) from None
        raise TokenizerError(
            f"{file} is not a SentencePiece model, or a damaged one ({str(error).strip()[:200]}); download it again"
        ) from None


def _own_tokens(processor: SentencePieceProcessor) -> dict[str, str]:
    ids = {"unk_token": processor.unk_id(), "bos_token": processor.bos_id()}
    ids |= {"eos_token": processor.eos_id(), "pad_token": processor.pad_id()}
    return {name: processor.id_to_piece(token_id) for name, token_id in ids.items() if token_id >= 0}


def _framing(tokenizer: Tokenizer, special: SpecialTokens, config: Mapping[str, Any], kind: _Class) -> Framing:
    def ids(setting: str, default: bool, name: str) -> tuple[int, ...]:
        chosen = config.get(setting)
        token_id = tokenizer.token_to_id(special.named.get(name, ""))
        return (token_id,) if (default if chosen is None else chosen) and token_id is not None else ()

    legacy = kind.legacy if config.get("legacy") is None else config["legacy"]
    return Framing(
        prefix="none" if config.get("add_prefix_space") is False else "each" if legacy else "first",
        before=ids("add_bos_token", kind.add_bos, "bos_token"),
        after=ids("add_eos_token", False, "eos_token"),
    )
