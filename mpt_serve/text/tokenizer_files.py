"""The small JSON files of a checkpoint folder that describe its tokenizer, and the class that they name."""

import json
from pathlib import Path
from typing import Any

from model.config.adapter import read_adapter_config
from model.config.lfs_pointer import lfs_pointer_problem
from model.config.strict_reader import ConfigError
from model.gguf.header import GgufError, GgufHeader, read_header
from mpt_serve.text.token_bytes import TokenizerError

__all__ = [
    "named_class",
    "read_gguf_header",
    "read_json_object",
    "require_no_lfs_pointer",
    "text_folder",
    "tokenizer_class",
]

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")
_FAMILY = ("mpt", "mosaic_gpt")


def read_json_object(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one if there is no such file. Raises TokenizerError."""
    if not file.is_file():
        return {}
    require_no_lfs_pointer(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{file} must hold a JSON object, not a {type(content).__name__}")
    return content


def read_gguf_header(file: Path) -> GgufHeader:
    """Return what a GGUF file says before its tensors. Raises TokenizerError."""
    require_no_lfs_pointer(file)
    try:
        return read_header(file)
    except GgufError as error:
        raise TokenizerError(str(error)) from None


def text_folder(folder: Path) -> Path:
    """Return where a folder's tokenizer is: an adapter without one has its base model's. Raises TokenizerError."""
    if any((folder / name).is_file() for name in VOCABULARY_FILES):
        return folder
    try:
        adapter = read_adapter_config(folder)
    except ConfigError as error:
        raise TokenizerError(str(error)) from None
    return folder if adapter is None else adapter.base


def require_no_lfs_pointer(file: Path) -> None:
    """Raise TokenizerError if a file is the pointer of Git LFS that stands for it."""
    problem = lfs_pointer_problem(file)
    if problem is not None:
        raise TokenizerError(problem)


def named_class(folder: Path) -> str | None:
    """Return the name of the class that a folder's tokenizer was written for, without "Fast"; None if no file says.

    tokenizer_config.json has precedence over config.json. Raises TokenizerError for a file that is not JSON.
    """
    for file in ("tokenizer_config.json", "config.json"):
        name = read_json_object(folder / file).get("tokenizer_class")
        if isinstance(name, str) and name:
            return name.removesuffix("Fast")
    return None


def tokenizer_class(folder: Path) -> str | None:
    """Return `named_class`, or GPT-NeoX's for an MPT whose files name none, as transformers does."""
    model_type = read_json_object(folder / "config.json").get("model_type")
    return named_class(folder) or ("GPTNeoXTokenizer" if model_type in _FAMILY else None)
