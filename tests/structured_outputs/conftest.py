"""Fixtures of the tests of structured outputs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mpt_serve.structured_outputs.compiler import GrammarCompiler
from mpt_serve.text.tokenizer import TextTokenizer

NEOX = Path(__file__).parents[1] / "text" / "data" / "gpt-neox-20b"


@pytest.fixture(scope="session")
def neox() -> TextTokenizer:
    """The tokenizer of most MPT checkpoints, with 50,277 ids."""
    return TextTokenizer.from_folder(NEOX)


@pytest.fixture(scope="session")
def compiler(neox: TextTokenizer) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(neox.text_token_bytes(), neox.eos_token_ids)
    yield compiler
    compiler.close()
