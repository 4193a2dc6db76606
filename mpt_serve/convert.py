"""Converts a checkpoint with its tokenizer: what `mpt-serve convert` does."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.checkpoint.convert import Checkpoint, write_safetensors
from model.checkpoint.convert_gguf import GGUF_TYPES, write_gguf
from model.checkpoint.stored_tensor import CheckpointError
from model.config.strict_reader import ConfigError
from model.gguf.header import is_gguf
from model.pretrained import resolve_checkpoint
from mpt_serve.configuration.problems import ConfigurationError, Problem
from mpt_serve.text.chat_template import find_template
from mpt_serve.text.gguf_vocabulary import add_vocabulary
from mpt_serve.text.tokenizer import TextTokenizer, TokenizerError
from mpt_serve.text.tokenizer_files import text_folder

__all__ = ["FORMS", "TYPES", "convert"]

FORMS = ("llm-foundry", "transformers", "gguf")
TYPES = ("bfloat16", "float16", "float32", *GGUF_TYPES)
_OF_TENSORS = ("config.json", "adapter_config.json")
_TEXT_FILES = ("*.json", "*.model", "*.jinja", "merges.txt")


def convert(source: str, target: str, form: str | None, kind: str | None, tokenizer: bool = True) -> Path:
    """Convert a checkpoint and return what was written: a folder, or a GGUF file.

    form: of `FORMS`; None is GGUF for a target that ends in .gguf, else llm-foundry's.
    kind: the type of the numbers, of `TYPES`; None keeps them, and for GGUF it is f16.
    tokenizer: whether to take it along.

    Raises ConfigurationError where the source cannot be read, or the form cannot represent it.
    """
    path = Path(target).expanduser()
    form = form or ("gguf" if path.suffix == ".gguf" else "llm-foundry")
    valid = GGUF_TYPES if form == "gguf" else TYPES[:3]
    if kind is not None and kind not in valid:
        raise ConfigurationError([Problem(("--type",), f"is {kind!r}; {form} has {', '.join(valid)}")])
    try:
        folder = resolve_checkpoint(source)
        checkpoint = Checkpoint.open(folder)
        text = TextTokenizer.find(folder) if tokenizer else None
        if form == "gguf":
            path.parent.mkdir(parents=True, exist_ok=True)
            write_gguf(checkpoint, path, kind or "f16", None if text is None else _adder(text, folder, checkpoint))
            return path
        write_safetensors(checkpoint, path, form, kind)
        if text is not None:
            _write_text(folder, path, text)
        return path
    except (CheckpointError, ConfigError, TokenizerError, OSError) as error:
        raise ConfigurationError([Problem((), str(error))]) from error


def _adder(tokenizer: TextTokenizer, folder: Path, checkpoint: Checkpoint) -> Callable[[Any], None]:
    """Return what adds a tokenizer to the writer of a GGUF file."""
    template, size = find_template(folder), checkpoint.config.vocab_size
    return lambda writer: add_vocabulary(writer, tokenizer, template, size)


def _write_text(source: Path, target: Path, tokenizer: TextTokenizer) -> None:
    """Write the tokenizer and what else describes text: copies of a folder's files, or what a GGUF file says."""
    if not is_gguf(source):
        for folder in dict.fromkeys((text_folder(source), source)):
            for file in (file for pattern in _TEXT_FILES for file in folder.glob(pattern)):
                if file.name not in _OF_TENSORS and not file.name.endswith(".index.json"):
                    shutil.copyfile(file, target / file.name)
        return
    state = json.loads(tokenizer.serialized)
    if "sentencepiece" in state:
        raise TokenizerError("the SentencePiece model of a GGUF file is not written to folders; use --no-tokenizer")
    (target / "tokenizer.json").write_text(state["tokenizer"], encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.special_tokens}
    (target / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    template = find_template(source)
    if template is not None:
        (target / "chat_template.jinja").write_text(template, encoding="utf-8")
