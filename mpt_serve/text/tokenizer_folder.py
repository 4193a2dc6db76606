"""The tokenizers of checkpoint folders: tokenizer.json, a SentencePiece model, or older files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from model.gguf.header import is_gguf
from mpt_serve.text.gguf_tokenizer import load_gguf_tokenizer
from mpt_serve.text.sentencepiece_folder import differs_from_model, find_sentencepiece, load_sentencepiece
from mpt_serve.text.special_tokens import read_special_tokens
from mpt_serve.text.text_encoder import LibraryEncoder, TextEncoder
from mpt_serve.text.token_bytes import TokenizerError
from mpt_serve.text.tokenizer_files import (
    VOCABULARY_FILES,
    named_class,
    read_gguf_header,
    read_json_object,
    require_no_lfs_pointer,
    text_folder,
)

__all__ = ["LoadedTokenizer", "has_tokenizer", "load_tokenizer"]

_NEOX = "Most MPT checkpoints use the tokenizer.json of EleutherAI/gpt-neox-20b"


class LoadedTokenizer(NamedTuple):
    """A tokenizer, what encodes by it, the texts of its special tokens by name, and the ids that end a text."""

    tokenizer: Tokenizer
    encoder: TextEncoder
    special_tokens: Mapping[str, str]
    eos_token_ids: Sequence[int]


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder has a file that a tokenizer is made from, or a GGUF file a tokenizer.

    Raises TokenizerError for a damaged GGUF file.
    """
    if is_gguf(folder):
        return "tokenizer.ggml.model" in read_gguf_header(folder).metadata
    return any((text_folder(folder) / name).is_file() for name in VOCABULARY_FILES)


def load_tokenizer(folder: Path) -> LoadedTokenizer:
    """Load the tokenizer of a folder, or of a GGUF file.

    Raises TokenizerError naming what cannot be read exactly, and what to do about it.
    """
    if is_gguf(folder):
        return LoadedTokenizer(*load_gguf_tokenizer(read_gguf_header(folder)))
    folder = text_folder(folder)
    file = folder / "tokenizer.json"
    model = None if file.is_file() else find_sentencepiece(folder)
    if model is not None:
        tokenizer, encoder, special = load_sentencepiece(model)
        return LoadedTokenizer(tokenizer, encoder, special.named, _eos_token_ids(folder, tokenizer, special.named))
    if file.is_file():
        tokenizer = _from_json(file)
        special = read_special_tokens(folder)
        special.add_to(tokenizer)
        named = special.named
    else:
        tokenizer, named = _through_transformers(folder)
    return LoadedTokenizer(tokenizer, LibraryEncoder(tokenizer), named, _eos_token_ids(folder, tokenizer, named))


def _from_json(file: Path) -> Tokenizer:
    require_no_lfs_pointer(file)
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(f"tokenizer.json in {file.parent} cannot be read: {error}") from error


def _through_transformers(folder: Path) -> tuple[Tokenizer, Mapping[str, str]]:
    """Return what transformers makes of older files, with the special tokens by name."""
    for name in VOCABULARY_FILES:
        if (folder / name).is_file():
            require_no_lfs_pointer(folder / name)
    if not has_tokenizer(folder):
        raise TokenizerError(f"{folder} has no tokenizer. Put the tokenizer.json of the model there. {_NEOX}.")
    kind = named_class(folder) or "no class"
    if "auto_map" in read_json_object(folder / "tokenizer_config.json"):
        raise TokenizerError(
            f"{folder} has no tokenizer.json, and its tokenizer's class ({kind}) is Python code of the checkpoint,"
            f" which is never run. {_conversion(folder)}"
        )
    try:
        # Takes seconds to import, so only for folders that have no tokenizer.json.
        from transformers import AutoTokenizer

        made = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        tokenizer, named = made.backend_tokenizer, made.special_tokens_map
    except Exception as error:
        reason = (str(error).strip() or "no reason given").splitlines()[0][:200]
        raise TokenizerError(
            f"{folder} has no tokenizer.json, and transformers cannot make one from its other files"
            f" ({type(error).__name__}: {reason}). {_conversion(folder)}"
        ) from error
    if differs_from_model(tokenizer, folder):
        raise TokenizerError(
            f"{folder} has a SentencePiece model, and what transformers makes of it for the class that its files name"
            f" ({kind}) cuts texts differently. If the model is all there is to the tokenizer, set tokenizer_class in"
            f" tokenizer_config.json to PreTrainedTokenizer. {_conversion(folder)}"
        )
    return tokenizer, named


def _conversion(folder: Path) -> str:
    found = ", ".join(name for name in VOCABULARY_FILES if (folder / name).is_file())
    return (
        f"Put the tokenizer.json of this model there; it must have the vocabulary of {found}. Where no mirror has one,"
        " load the tokenizer once in an environment that you trust its code with, and save it with"
        " backend_tokenizer.save('tokenizer.json')"
    )


def _eos_token_ids(folder: Path, tokenizer: Tokenizer, named: Mapping[str, str]) -> list[int]:
    """Return every id that ends a text: those of the config files, and ChatML's end of turn. GPT-NeoX's is 0."""
    ids = [read_json_object(folder / name).get("eos_token_id") for name in ("generation_config.json", "config.json")]
    ids += [tokenizer.token_to_id(named.get("eos_token", "")), tokenizer.token_to_id("<|im_end|>")]
    flat = [i for value in ids for i in (value if isinstance(value, list) else [value])]
    return [i for i in flat if isinstance(i, int) and not isinstance(i, bool)]
