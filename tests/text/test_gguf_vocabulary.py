"""Tokenizers written into GGUF files, and read from there again."""

from pathlib import Path

import pytest
from gguf import GGUFWriter
from test_gguf_tokenizer import write
from tokenizers import Tokenizer, pre_tokenizers
from toy_tokenizers import byte_level_tokenizer, metaspace_tokenizer

from mpt_serve.text.chat_template import find_template
from mpt_serve.text.gguf_vocabulary import add_vocabulary
from mpt_serve.text.tokenizer import TextTokenizer, TokenizerError

TEXT = "Hello  naïve e\u0301 <|endoftext|> 日本\n\n   x'll 12"


def there_and_back(path: Path, tokenizer: TextTokenizer, template: str | None = None, size: int = 0) -> TextTokenizer:
    write(path, lambda writer: add_vocabulary(writer, tokenizer, template, size))
    return TextTokenizer.from_folder(path)


def test_gpt_neox_is_itself(tmp_path: Path, neox: TextTokenizer) -> None:
    path = tmp_path / "m.gguf"
    back = there_and_back(path, neox, "{{ eos_token }}", 50432)
    assert back.encode(TEXT) == neox.encode(TEXT)
    assert back.vocab_len == neox.vocab_len
    assert back.special_ids == neox.special_ids
    assert find_template(path) == "{{ eos_token }}"


def test_a_tokenizer_may_have_no_merges_and_no_template(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    named = {"eos_token": "<|endoftext|>", "image_token": "a", "pad_token": "<|nobody|>"}
    tokenizer = TextTokenizer(byte_level_tokenizer(), special_tokens=named)
    back = there_and_back(path, tokenizer)
    assert back.encode(TEXT) == tokenizer.encode(TEXT)
    assert back.special_tokens == {"eos_token": "<|endoftext|>"}  # the format has no others
    assert find_template(path) is None


def split_by_spaces() -> Tokenizer:
    tokenizer = byte_level_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.mark.parametrize("make", [metaspace_tokenizer, split_by_spaces])
def test_what_the_format_has_no_name_for_is_refused(tmp_path: Path, make: type[Tokenizer]) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "mpt")
    with pytest.raises(TokenizerError, match="only byte-level tokenizers"):
        add_vocabulary(writer, TextTokenizer(make()), None, 10)
