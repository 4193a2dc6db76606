"""A small tokenizer and a small model's config, shared by the training tests."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from tokenizers import Tokenizer

from model.config.mpt_config import MptConfig
from model.params.weights import Weights, init_weights
from training.architecture import config_dict
from training.tokenizer import train_tokenizer

VOCAB_SIZE = 600


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(seed=1, documents=300, vocab_size=VOCAB_SIZE)


@pytest.fixture(scope="session")
def small_config_dict() -> dict[str, object]:
    return config_dict(d_model=32, n_layers=1, n_heads=2, vocab_size=VOCAB_SIZE)


@pytest.fixture(scope="session")
def config(small_config_dict: dict[str, object]) -> MptConfig:
    return MptConfig.from_dict(small_config_dict)


@pytest.fixture(scope="session")
def weights(config: MptConfig) -> Weights:
    return jax.jit(lambda key: init_weights(config, key, jnp.float32))(jax.random.key(0))


@pytest.fixture
def run_folder(tmp_path: Path, tokenizer: Tokenizer, small_config_dict: dict[str, object]) -> Path:
    """A run folder that has a tokenizer and a config but no checkpoint yet."""
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps(small_config_dict))
    return tmp_path
