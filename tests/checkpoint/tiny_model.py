"""A model small enough to write and read in milliseconds."""

from typing import Any

import jax
import numpy as np

from model.config.mpt_config import MptConfig
from model.params.weights import Weights, assemble_weights, weight_specs

TINY: dict[str, Any] = {
    "model_type": "mpt",
    "d_model": 16,
    "n_heads": 4,
    "n_layers": 2,
    "vocab_size": 40,
    "max_seq_len": 32,
    "no_bias": True,
    "attn_config": {"alibi": True},
}


def random_weights(config: dict[str, Any], seed: int = 0, dtype: Any = np.float32) -> Weights:
    """Return weights whose every element is random, biases and norms too."""
    parsed = MptConfig.from_dict(config)
    rng = np.random.default_rng(seed)
    arrays = {s.path: jax.numpy.asarray(rng.normal(0, 0.2, s.shape).astype(dtype)) for s in weight_specs(parsed)}
    return assemble_weights(parsed, arrays)


def checkpoint_arrays(config: dict[str, Any], seed: int = 0, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Return random arrays by the names of `weight_specs`, to be written in any format."""
    rng = np.random.default_rng(seed)
    return {s.name: rng.normal(0, 0.2, s.shape).astype(dtype) for s in weight_specs(MptConfig.from_dict(config))}
