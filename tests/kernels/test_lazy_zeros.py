"""Zeros that take no memory until they are used."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.config.mpt_config import MptConfig
from model.kernels.cpu.library import kernels_available
from model.kernels.cpu.zeros import lazy_zeros
from model.params.kv_cache import init_kv_cache

pytestmark = pytest.mark.skipif(not kernels_available(), reason="a native kernel")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8])
@pytest.mark.parametrize("shape", [(3, 5), (0, 4), (7, 2**20 + 3)])
def test_they_are_zeros_whatever_the_memory_held(shape: tuple[int, ...], dtype: jnp.dtype) -> None:
    for _ in range(3):  # memory that was filled and released is taken again
        zeros = lazy_zeros(shape, dtype)
        assert (zeros.shape, zeros.dtype) == (shape, dtype)
        assert not np.asarray(zeros).any()
        jax.jit(lambda x: x + jnp.ones((), x.dtype), donate_argnums=0)(zeros).block_until_ready()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its memory from Linux's /proc")
def test_a_cache_takes_memory_as_it_is_used() -> None:
    config = MptConfig(d_model=512, n_heads=4, n_layers=2, vocab_size=8)
    before = resident()
    cache = init_kv_cache(config, 4096, 32, jnp.float32, zeros=lazy_zeros)
    size = sum(pool.nbytes for pool in jax.tree.leaves(cache))
    assert size > 2**30
    assert resident() - before < size / 8
