"""Writes what describes text beside converted weights: the tokenizer, its special tokens, the chat template."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.checkpoint.atomic_write import atomic_write
from model.gguf.header import is_gguf
from mpt_serve.text.chat_template import find_template
from mpt_serve.text.gguf_vocabulary import add_vocabulary
from mpt_serve.text.tokenizer import TextTokenizer, TokenizerError
from mpt_serve.text.tokenizer_files import text_folder

__all__ = ["vocabulary_adder", "write_text_files"]

_OF_TENSORS = ("config.json", "adapter_config.json", "quantize_config.json", "quant_config.json")
_TEXT_FILES = ("*.json", "*.model", "*.jinja", "merges.txt")


def vocabulary_adder(tokenizer: TextTokenizer, folder: Path, vocab_size: int) -> Callable[[Any], None]:
    """Return what adds the tokenizer of a folder to the writer of a GGUF file."""
    template = find_template(folder)
    return lambda writer: add_vocabulary(writer, tokenizer, template, vocab_size)


def write_text_files(source: Path, target: Path, tokenizer: TextTokenizer) -> None:
    """Write copies of a folder's files, or what a GGUF file says. Raises TokenizerError for what has no such file."""
    if not is_gguf(source):
        for folder in dict.fromkeys((text_folder(source), source)):
            for file in (file for pattern in _TEXT_FILES for file in folder.glob(pattern)):
                if file.name not in _OF_TENSORS and not file.name.endswith(".index.json"):
                    shutil.copyfile(file, target / file.name)
        return
    state = json.loads(tokenizer.serialized)
    if "sentencepiece" in state:
        raise TokenizerError("the SentencePiece model of a GGUF file is not written to folders; use --no-tokenizer")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.special_tokens}
    template = find_template(source)
    texts = {
        "tokenizer.json": state["tokenizer"],
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        **({} if template is None else {"chat_template.jinja": template}),
    }
    for name, text in texts.items():
        with atomic_write(target / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
