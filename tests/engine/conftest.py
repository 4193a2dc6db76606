"""A tiny MPT, and programs compiled once for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from engine_helpers import compiled_in, shared_folder
from small_engine import CHARACTERS, END, SETTINGS, VOCAB_LIMIT

from model.config.mpt_config import MptConfig
from model.params.weights import Weights, init_weights
from mpt_serve.engine import Engine
from mpt_serve.structured_outputs.compiler import GrammarCompiler


@pytest.fixture(scope="session")
def compiled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_folder(tmp_path_factory, "compiled")


@pytest.fixture(scope="module", autouse=True)
def _compile_once(compiled_folder: Path) -> Iterator[None]:
    """Engines of the same shape share their programs. Other folders' tests compile without the cache."""
    with compiled_in(compiled_folder):
        yield


@pytest.fixture(scope="package")
def config() -> MptConfig:
    return MptConfig.from_dict(
        {
            "model_type": "mpt",
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "expansion_ratio": 2,
            "vocab_size": 96,
            "max_seq_len": 64,
            "attn_config": {"alibi": True},
        }
    )


@pytest.fixture(scope="package")
def weights(config: MptConfig) -> Weights:
    # Large enough that the ids of an output vary.
    return init_weights(config, jax.random.key(0), scale=0.4)


@pytest.fixture(scope="package")
def engine(weights: Weights, config: MptConfig, compiled_folder: Path) -> Iterator[Engine]:
    """An engine in its usual state: everything compiled at start."""
    with compiled_in(compiled_folder):
        engine = Engine(weights, config, SETTINGS, vocab_limit=VOCAB_LIMIT)
    with engine:
        yield engine


@pytest.fixture(scope="package")
def grammars() -> Iterator[GrammarCompiler]:
    """Compiles grammars over a vocabulary of one character per id; END ends a text."""
    token_bytes = [None if i == END else CHARACTERS[i].encode() for i in range(VOCAB_LIMIT)]
    compiler = GrammarCompiler(token_bytes, [END])
    yield compiler
    compiler.close()
