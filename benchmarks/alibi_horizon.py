"""Measure what the ALiBi horizon saves: the share of keys and values read, and the time of decode attention.

    python benchmarks/alibi_horizon.py [--contexts 2048 8192 32768 65536] [--reach 11 23] [--models 7b 30b storywriter]

One layer of each model's shape (heads, head_dim, slopes), one sequence, bfloat16 cache, the native kernels. Queries and
keys are independent normal numbers of one spread, so that `reach`, the largest score that lengths allow (scale * |q|
|k|), is close to the given number; scores then have a deviation of reach / sqrt(head_dim): 1 for 11, 2 for 23, with
heads of 128. Which keys are skipped depends on lengths, slopes and the scores of keys that were read. Each pair of runs
measures with and without the horizon, in alternating order; `speed` is the median of time without over time with.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.config.mpt_config import MptConfig
from model.kernels.cpu.attention import paged_attention
from model.kernels.cpu.library import kernel_library
from model.kernels.cpu.zeros import lazy_zeros
from model.params.alibi_horizon import length_bound
from model.params.kv_cache import LayerCache, init_kv_cache
from model.params.qkv import Qkv
from model.params.step_batch import StepBatch

BLOCK = 32
MODELS = {
    "7b": {"n_heads": 32, "d_model": 4096, "alibi_bias_max": 8.0},
    "30b": {"n_heads": 64, "d_model": 7168, "alibi_bias_max": 8.0},
    "storywriter": {"n_heads": 32, "d_model": 4096, "alibi_bias_max": 16.0},
}


class Decode:
    """One layer's cache, filled with `context` tokens, and a token that attends them."""

    def __init__(self, model: str, context: int, reach: float, dtype: str) -> None:
        shape: Any = MODELS[model]
        self._config = MptConfig(**shape, n_layers=1, vocab_size=8)
        spread = (reach / self._config.head_dim**0.5) ** 0.5
        blocks = context // BLOCK
        cache = init_kv_cache(self._config, blocks, BLOCK, dtype, zeros=lazy_zeros)
        self._cache: LayerCache = _filled(cache.layers[0], spread)
        table = np.random.default_rng(0).permutation(blocks).astype(np.int32)
        q = spread * jax.random.normal(jax.random.key(1), (1, self._config.n_heads, self._config.head_dim))
        k, v = (spread * jax.random.normal(jax.random.key(2 + i), q.shape) for i in range(2))
        slot = int(table[-1]) * BLOCK + BLOCK - 1
        one, zero = jnp.ones(1, jnp.int32), jnp.zeros(1, jnp.int32)
        batch = StepBatch(zero, zero, one * slot, jnp.asarray(table)[None], zero, one, one * context, jnp.int32(1))
        self._inputs = (Qkv(q, k, v, jnp.concatenate([q, k, v], axis=1).reshape(1, -1)), batch)
        self._attend = jax.jit(paged_attention, static_argnums=3, static_argnames="alibi_horizon", donate_argnums=1)

    def run(self, alibi_horizon: bool) -> tuple[float, float]:
        """Attend once -> seconds, and the share of keys and values that were read."""
        library = kernel_library()
        assert library is not None
        qkv, batch = self._inputs
        before, start = library.key_counts(), time.perf_counter()
        y, self._cache = self._attend(qkv, self._cache, batch, self._config, alibi_horizon=alibi_horizon)
        y.block_until_ready()
        seconds, after = time.perf_counter() - start, library.key_counts()
        return seconds, (after.read - before.read) / (after.visible - before.visible)


@partial(jax.jit, donate_argnums=0)
def _filled(layer: LayerCache, spread: float) -> LayerCache:
    """Fill blocks with random keys and values that repeat every 64 blocks, which changes no timing."""

    def fill(pool: Array, key: int) -> Array:
        numbers = jax.random.normal(jax.random.key(key), (min(64, pool.shape[0]), *pool.shape[1:]))
        return (spread * numbers).astype(pool.dtype)[jnp.arange(pool.shape[0]) % 64]

    keys = fill(layer.keys, 10)
    return LayerCache(keys, fill(layer.values, 11), length_bound(keys))


def measure(model: str, context: int, reach: float, rounds: int) -> dict[str, Any]:
    """Measure one model at one context length, `rounds` times with and without the horizon."""
    decode = Decode(model, context, reach, "bfloat16")
    for enabled in (True, False):
        decode.run(enabled)
    runs: dict[bool, list[float]] = {True: [], False: []}
    share = 1.0
    for i in range(rounds):
        for enabled in (True, False) if i % 2 else (False, True):
            seconds, read = decode.run(enabled)
            runs[enabled].append(seconds)
            share = read if enabled else share
    ratios = [off / on for off, on in zip(runs[False], runs[True], strict=True)]
    return {
        "model": model,
        "context": context,
        "reach": reach,
        "share_read": round(share, 3),
        "on_ms": round(1e3 * statistics.median(runs[True]), 3),
        "off_ms": round(1e3 * statistics.median(runs[False]), 3),
        "speed": round(statistics.median(ratios), 2),
        "spread": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--contexts", nargs="+", type=int, default=[2048, 8192, 32768, 65536])
    parser.add_argument("--reach", nargs="+", type=float, default=[11.0, 23.0])
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    for figures in _figures(options):
        print(json.dumps(figures), flush=True)


def _figures(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for model in options.models:
        for context in options.contexts:
            for reach in options.reach:
                yield measure(model, context, reach, options.rounds)


if __name__ == "__main__":
    main()
