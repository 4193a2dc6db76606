import json
from pathlib import Path

import pytest
from hypothesis import settings
from tokenizers import AddedToken, Tokenizer
from toy_tokenizers import byte_level_tokenizer

from mpt_serve.text.tokenizer import TextTokenizer

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

NEOX = Path(__file__).parent / "data" / "gpt-neox-20b"


@pytest.fixture(scope="session")
def neox_library() -> Tokenizer:
    """The library's own tokenizer, to compare with."""
    return Tokenizer.from_file(str(NEOX / "tokenizer.json"))


@pytest.fixture(scope="session")
def neox() -> TextTokenizer:
    return TextTokenizer.from_folder(NEOX)


@pytest.fixture(scope="session")
def chatml_tokenizer() -> TextTokenizer:
    """GPT-NeoX with the two tokens that the chat models add."""
    tokenizer = Tokenizer.from_file(str(NEOX / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    return TextTokenizer(tokenizer)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder with a small tokenizer and empty configuration files."""
    byte_level_tokenizer().save(str(tmp_path / "tokenizer.json"))
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps({}))
    return tmp_path
