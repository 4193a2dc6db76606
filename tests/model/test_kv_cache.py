"""What the paged cache promises beyond attention: copies of blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.config.mpt_config import MptConfig
from model.params.kv_cache import KvCache, copy_blocks, init_kv_cache

CONFIG = MptConfig(d_model=32, n_heads=4, kv_n_heads=2, n_layers=2, vocab_size=8, alibi=True)
BLOCKS = 9


def filled_cache(dtype: str) -> KvCache:
    """Return a cache in which all numbers differ."""
    cache = init_kv_cache(CONFIG, BLOCKS, 4, dtype)
    return jax.tree.map(lambda pool: jnp.arange(pool.size).reshape(pool.shape).astype(pool.dtype), cache)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_are_copied_in_every_array(dtype: str) -> None:
    """Reads come before writes (block 1 is both), padding beyond the pool goes nowhere, other blocks stay."""
    cache = filled_cache(dtype)
    before = [np.asarray(pool) for pool in jax.tree.leaves(cache)]
    src, dst = np.array([0, 1, 2, 5], np.int32), np.array([1, 8, 3, BLOCKS], np.int32)
    after = jax.tree.leaves(jax.jit(copy_blocks, donate_argnums=0)(cache, src, dst))
    assert len(after) == len(before) >= 2 * CONFIG.n_layers
    for old, new in zip(before, after, strict=True):
        expected = old.copy()
        expected[[1, 8, 3]] = old[[0, 1, 2]]
        np.testing.assert_array_equal(np.asarray(new), expected)


def test_a_donated_cache_is_copied_in_place() -> None:
    cache = init_kv_cache(CONFIG, 4096, 16, "float32")
    copy = jax.jit(copy_blocks, donate_argnums=0).lower(cache, np.zeros(2, np.int32), np.ones(2, np.int32)).compile()
    places = [pool.unsafe_buffer_pointer() for pool in jax.tree.leaves(cache)]
    memory = copy.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < max(pool.nbytes for pool in jax.tree.leaves(cache)) / 10
    cache = copy(cache, np.zeros(2, np.int32), np.ones(2, np.int32))
    assert [pool.unsafe_buffer_pointer() for pool in jax.tree.leaves(cache)] == places
