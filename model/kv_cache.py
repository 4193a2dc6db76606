"""The paged key/value cache as a pytree: pools of blocks, addressed through each sequence's block table.

A slot is a place for one token: `block * block_size + offset`. Who owns which block is the engine's business.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Sharding
from jax.typing import DTypeLike

from model.config import MptConfig

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    from flax.struct import dataclass


@dataclass
class KvCache:
    """One pool [num_blocks, Hkv, block_size, hd] of keys and one of values per layer, each an array of its own.

    Separate arrays are donated and updated in place; one stacked array would be copied (measured on XLA's CPU).
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]


def init_kv_cache(
    config: MptConfig, num_blocks: int, block_size: int, dtype: DTypeLike, sharding: Sharding | None = None
) -> KvCache:
    """Zeroed pools; `sharding` places each (heads are axis 1)."""
    shape = (num_blocks, config.kv_n_heads, block_size, config.head_dim)

    def pools() -> tuple[Array, ...]:
        return tuple(jnp.zeros(shape, dtype, device=sharding) for _ in range(config.n_layers))

    return KvCache(keys=pools(), values=pools())


def kv_bytes_per_token(config: MptConfig, dtype: DTypeLike) -> int:
    """Bytes that one token's keys and values take over all layers."""
    return 2 * config.n_layers * config.kv_n_heads * config.head_dim * jnp.dtype(dtype).itemsize


def write_kv(pool: Array, x: Array, slots: Array) -> Array:
    """Puts x [T, Hkv, hd] at slots [T] of pool [N, Hkv, block_size, hd]; slots beyond the pool are dropped."""
    block_size = pool.shape[2]
    return pool.at[slots // block_size, :, slots % block_size].set(x.astype(pool.dtype), mode="drop")


def copy_blocks(cache: KvCache, src: Array, dst: Array) -> KvCache:
    """Block src[i] of every layer copied to block dst[i]: src and dst [K] int32; dst beyond the pool is dropped.

    All is read before any is written. In place where the cache is donated.
    """

    def copied(pool: Array) -> Array:  # [N, ...]
        return pool.at[dst].set(pool.at[src].get(mode="clip"), mode="drop")

    return jax.tree.map(copied, cache)
