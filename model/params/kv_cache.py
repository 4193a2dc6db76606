"""The paged key/value cache as a pytree: pools of blocks, addressed through each sequence's block table.

A slot holds one token: `block * block_size + offset`. The engine decides who owns which block. Everything that the
cache holds belongs to one token, so that what a block held before, or holds behind a sequence's end, does not affect
the sequence.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Sharding
from jax.typing import DTypeLike

from model.config.mpt_config import MptConfig
from model.ops.pytree import dataclass
from model.params.alibi_horizon import length_bound


@dataclass
class LayerCache:
    """Pools [num_blocks, Hkv, block_size, hd] of one layer's keys and values, and float32 numbers of each token.

    Numbers are [num_blocks, Hkv, block_size]. Int8 pools have scales: a key is its scale times integers up to 127.
    """

    keys: Array
    values: Array
    key_norms: Array | None = None  # bounds of the stored keys' lengths, for models with ALiBi (alibi_horizon.py)
    key_scales: Array | None = None
    value_scales: Array | None = None


@dataclass
class KvCache:
    """The layers' pools, each a separate array.

    Separate arrays are donated and updated in place; one stacked array would be copied (measured on XLA's CPU).
    """

    layers: tuple[LayerCache, ...]


def init_kv_cache(
    config: MptConfig,
    num_blocks: int,
    block_size: int,
    dtype: DTypeLike,
    sharding: Sharding | None = None,
    zeros: Callable[..., Array] = jnp.zeros,
) -> KvCache:
    """Return zeroed pools of float32, bfloat16, float16 or int8; `sharding` places each array (heads are axis 1).

    zeros: makes each array, with the arguments of `jnp.zeros`.
    """
    shape = (num_blocks, config.kv_n_heads, block_size)

    def numbers(needed: bool) -> Array | None:
        return zeros(shape, jnp.float32, device=sharding) if needed else None

    def layer() -> LayerCache:
        keys, values = (zeros((*shape, config.head_dim), dtype, device=sharding) for _ in range(2))
        quantized = _is_int8(dtype)
        return LayerCache(keys, values, numbers(config.alibi), numbers(quantized), numbers(quantized))

    return KvCache(tuple(layer() for _ in range(config.n_layers)))


def kv_bytes_per_token(config: MptConfig, dtype: DTypeLike) -> int:
    """Return the bytes that one token takes over all layers: keys, values, and the numbers kept beside them."""
    numbers = int(config.alibi) + 2 * _is_int8(dtype)
    per_head = 2 * config.head_dim * jnp.dtype(dtype).itemsize + 4 * numbers
    return config.n_layers * config.kv_n_heads * per_head


def write_kv(layer: LayerCache, k: Array, v: Array, slots: Array) -> LayerCache:
    """Write k and v [T, Hkv, hd] float32 to slots [T]; slots beyond the pool are dropped."""
    block_size = layer.keys.shape[2]
    block, offset = slots // block_size, slots % block_size

    def put(pool: Array | None, x: Array) -> Array | None:
        return None if pool is None else pool.at[block, :, offset].set(x.astype(pool.dtype), mode="drop")

    (k, key_scales), (v, value_scales) = _as_stored(k, layer.keys.dtype), _as_stored(v, layer.values.dtype)
    keys, values = put(layer.keys, k), put(layer.values, v)
    assert keys is not None
    assert values is not None
    return LayerCache(
        keys=keys,
        values=values,
        key_norms=put(layer.key_norms, length_bound(k * key_scales[..., None])),
        key_scales=put(layer.key_scales, key_scales),
        value_scales=put(layer.value_scales, value_scales),
    )


def read_blocks(pool: Array, scales: Array | None, blocks: Array) -> Array:
    """Return the keys or values [n, Hkv, block_size, hd] of blocks [n]: as stored, or float32 out of an int8 pool."""
    found = pool[blocks]
    return found if scales is None else found.astype(jnp.float32) * scales[blocks][..., None]


def copy_blocks(cache: KvCache, src: Array, dst: Array) -> KvCache:
    """Copy block src[i] of every layer to block dst[i]: src and dst [K] int32; dst beyond the pool is dropped.

    All blocks are read before any is written. In place where the cache is donated.
    """

    def copied(pool: Array) -> Array:  # [N, ...]
        return pool.at[dst].set(pool.at[src].get(mode="clip"), mode="drop")

    return jax.tree.map(copied, cache)


def _as_stored(x: Array, dtype: DTypeLike) -> tuple[Array, Array]:
    """Return x [T, Hkv, hd] rounded to the precision of dtype, still float32, and its scales [T, Hkv]."""
    if not _is_int8(dtype):
        info = jnp.finfo(dtype)  # a conversion and its inverse may be optimised away, this is not
        return lax.reduce_precision(x, info.nexp, info.nmant), jnp.ones(x.shape[:-1], jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=-1)
    scales = jnp.where(largest == 0, 1.0, largest * np.float32(1 / 127))  # as XLA divides by constants
    return jnp.round(x / scales[..., None]), scales


def _is_int8(dtype: DTypeLike) -> bool:
    return jnp.dtype(dtype) == jnp.int8
