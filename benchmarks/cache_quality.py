"""Measure the quality of a dtype of the KV cache: divergence of the logits from those over a float32 cache.

    python benchmarks/cache_quality.py CHECKPOINT [CHECKPOINT ...] [--text FILE] [--tokens 512]

A line per checkpoint and dtype: mean and largest KL(float32 || dtype) in nats over the positions of one text, share of
positions with the same most likely token, and the error of the logits relative to them (both less their mean, which no
probability depends on). The text is random ids, or FILE by the checkpoint's tokenizer.json. Every key and value goes
through the cache: the whole text is one chunk.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.config.mpt_config import MptConfig
from model.kernel_selection import select_kernels, weight_format
from model.layers.paged_forward import CacheAttention, forward_step, lm_logits
from model.params.kv_cache import init_kv_cache
from model.params.step_batch import StepBatch
from model.params.weights import Weights
from model.pretrained import mpt_from_pretrained

BLOCK = 32


def text_ids(folder: Path, text: Path | None, config: MptConfig, count: int) -> NDArray[np.int32]:
    if text is None:
        return np.random.default_rng(2026).integers(0, config.vocab_size, count, np.int32)
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text.read_text(encoding="utf-8")).ids
    return np.array(ids[:count], np.int32)


@partial(jax.jit, static_argnums=(1, 3, 4))
def text_logits(weights: Weights, config: MptConfig, ids: Array, dtype: str, attention: CacheAttention) -> Array:
    """Compute ids [T] -> logits [T, V] float32 through a cache of dtype."""
    T = len(ids)
    blocks = -(-T // BLOCK)
    places = jnp.arange(T, dtype=jnp.int32)
    one, zero = jnp.ones(1, jnp.int32), jnp.zeros(1, jnp.int32)
    table = jnp.arange(blocks, dtype=jnp.int32)[None]
    batch = StepBatch(ids, places, places, table, zero, one * T, one * T, jnp.int32(0))
    states, _ = forward_step(weights, config, init_kv_cache(config, blocks, BLOCK, dtype), batch, attention)
    return lm_logits(weights, config, states)


@jax.jit
def divergence(expected: Array, found: Array) -> tuple[Array, Array, Array, Array]:
    """Return mean and largest KL in nats, share of equal argmax ids, and relative error of logits [T, V]."""
    p, q = jax.nn.log_softmax(expected), jax.nn.log_softmax(found)
    kl = jnp.sum(jnp.exp(p) * (p - q), axis=-1)
    same = jnp.mean(expected.argmax(-1) == found.argmax(-1))
    expected, found = (x - x.mean(axis=-1, keepdims=True) for x in (expected, found))
    error = jnp.sqrt(jnp.mean(jnp.square(found - expected)) / jnp.mean(jnp.square(expected)))
    return kl.mean(), kl.max(), same, error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "int8"])
    parser.add_argument("--kernels", choices=["auto", "xla"], default="auto")
    options = parser.parse_args()
    devices = set(jax.devices()[:1])
    for folder in options.checkpoints:
        format = weight_format(devices, "none", options.kernels)
        weights, config = mpt_from_pretrained(folder, dtype="float32", format=format)
        ids = text_ids(folder, options.text, config, min(options.tokens, config.max_seq_len))
        run = partial(text_logits, weights, config, jnp.asarray(ids))
        expected = run("float32", select_kernels(weights, config, "float32", options.kernels).attention)
        for dtype in options.dtypes:
            found = run(dtype, select_kernels(weights, config, dtype, options.kernels).attention)
            mean, largest, same, error = (float(x) for x in divergence(expected, found))
            figures = {"kl_mean": mean, "kl_max": largest, "same_choice": same, "logit_error": error}
            rounded = {name: float(f"{figure:.3g}") for name, figure in figures.items()}
            print(json.dumps({"checkpoint": folder.name, "cache_dtype": dtype, **rounded}), flush=True)


if __name__ == "__main__":
    main()
