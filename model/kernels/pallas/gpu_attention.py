"""Paged attention for GPUs (Pallas' Triton backend): one program for each tile of queries and key head.

A program loops over the pages that its queries have. Pages are gathered by address, so blocks and heads of any size are
read in place, and slots without a key are not read at all. Decode rows are split along their keys as well (flash
decoding), because a batch of few long rows has fewer tiles than a GPU has processors.

Triton rather than Mosaic GPU: JAX 0.10's Mosaic GPU multiplies matrices on Hopper and Blackwell only, and float32 as
TF32 at best. JAX 0.11 deprecates the Triton backend, so this module should move once Mosaic GPU offers both.
Lowered and interpreted, not run on hardware.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from model.config.mpt_config import MptConfig
from model.kernels.pallas.key_tile import NEVER, biased_scores, head_slopes, operand_precision, rescale, visible_keys
from model.kernels.pallas.query_tiles import QueryTiles, decode_tiles, prefill_tiles, tokens_of
from model.params.step_batch import StepBatch


class _Tiles(NamedTuple):
    """The sizes of one program's work, chosen so that a GPU's registers hold it without spilling."""

    rows: int  # maximum of queries times query heads of one key head
    keys: int  # keys of one pass of the loop
    warps: int


_TENSOR_CORES = _Tiles(rows=64, keys=64, warps=4)
_SCALAR_UNITS = _Tiles(rows=16, keys=32, warps=8)  # for exact float32 products
_LEAST = 16  # rows and columns of the smallest product that Triton supports
_PROGRAMS = 256  # programs that keep a large GPU busy; decode rows are split to reach that number
_SPLIT_KEYS = 256  # fewest keys of a split


def paged_attention(
    q: Array,
    k_pool: Array,
    v_pool: Array,
    batch: StepBatch,
    config: MptConfig,
    *,
    slopes: Array | None = None,
    query_tile: int | None = None,
    key_tile: int | None = None,
    splits: int | None = None,
    interpret: bool = False,
) -> Array:
    """Compute `layers.attention.paged_attention` on a GPU: q [T, H, hd] float32 -> [T, H, hd].

    Pools [N, Hkv, block, hd]. `slopes` [H] float32: of q's heads, where a device holds only some of them; None takes
    the config's. `query_tile` (prefill queries that share one pass over the keys), `key_tile` (keys of one pass of the
    loop, a power of two from 16) and `splits` (programs that share a decode row's keys) are for tuning. Float32 pools
    are multiplied exactly, 16-bit pools as they are with float32 sums. Pools may be wider than hd. Results of tokens of
    no row are 0.
    """
    T, H, _ = q.shape
    _, Hkv, block, _ = k_pool.shape
    R, W = batch.block_tables.shape
    sizes = _SCALAR_UNITS if k_pool.dtype == jnp.float32 else _TENSOR_CORES
    sizes = sizes._replace(keys=key_tile or sizes.keys)
    slopes = head_slopes(config) if slopes is None else slopes
    attend = partial(_attend, q, k_pool, v_pool, batch.block_tables, slopes, config, sizes, interpret)
    splits = splits or max(1, min(pl.cdiv(_PROGRAMS, R * Hkv), W * block // _SPLIT_KEYS))
    out = attend(decode_tiles(batch, T), splits)
    if batch.decode_only:
        return out
    prefilled = attend(prefill_tiles(batch, T, query_tile or max(1, sizes.rows * Hkv // H)), 1)
    return jnp.where((jnp.arange(T) < batch.num_decode)[:, None, None], out, prefilled)


class _Inputs(NamedTuple):
    """The inputs of a launch: whole arrays, or references to them inside the kernel."""

    tokens: Array  # [n, t] int32, `QueryTiles.tokens`
    rows: Array  # [n] int32, `QueryTiles.rows`
    first: Array  # [n] int32, `QueryTiles.first`
    keys: Array  # [n] int32, `QueryTiles.keys`
    tables: Array  # [R, W] int32
    slopes: Array  # [H] float32
    q: Array  # [T, H, hd] float32
    k_pool: Array  # [N, Hkv, block, hd]
    v_pool: Array  # [N, Hkv, block, hd]


class _Queries(NamedTuple):
    """The r rows of one program, each one query in one query head; padded to a power of two."""

    kv: Array  # [] int32, the key head that all of them read
    held: Array  # [r] bool, False for padding
    query: Array  # [r] int32, index in the tile
    head: Array  # [r] int32
    q: Array  # [r, c], 0 beyond the tile's last query and beyond hd


def _attend(
    q: Array,
    k_pool: Array,
    v_pool: Array,
    tables: Array,
    slopes: Array,
    config: MptConfig,
    sizes: _Tiles,
    interpret: bool,
    tiles: QueryTiles,
    splits: int,
) -> Array:
    """Compute all tiles in one launch -> [T, H, hd] float32, 0 for tokens of no tile."""
    (T, H, hd), (n, t), Hkv = q.shape, tiles.tokens.shape, k_pool.shape[1]
    group = min(H // Hkv, sizes.rows)  # query heads of one program; a larger group takes several programs
    out, mass = pl.pallas_call(
        partial(_kernel, config=config, group=group, key_tile=sizes.keys),
        grid=(n, Hkv * pl.cdiv(H // Hkv, group), splits),
        out_shape=(
            jax.ShapeDtypeStruct((splits, n * t, H, hd), jnp.float32),
            jax.ShapeDtypeStruct((splits, n * t, H), jnp.float32),
        ),
        compiler_params=plgpu.CompilerParams(num_warps=sizes.warps, num_stages=2),
        interpret=interpret,
        name=f"paged_attention_{t}_queries",
    )(*_Inputs(*tiles, tables, slopes, q, k_pool, v_pool))
    shares = jax.nn.softmax(mass, axis=0)[..., None]  # [splits, n * t, H, 1]
    out = out[0] if splits == 1 else jnp.sum(out * shares, axis=0)
    return tokens_of(out.reshape(n, t, H, hd), tiles, T)


def _kernel(*refs: Any, config: MptConfig, group: int, key_tile: int) -> None:
    """Compute one tile for `group` query heads of one key head and one split of the keys.

    Writes values [splits, n * t, H, hd] over this split's keys, and the logarithm of the sum of their weights.
    """
    inputs, (out_ref, mass_ref) = _Inputs(*refs[:-2]), refs[-2:]
    n, split = pl.program_id(0), pl.program_id(2)
    queries = _load_queries(inputs, n, pl.program_id(1), group)
    first = inputs.first[n]
    oldest = 0 if config.sliding_window is None else jnp.maximum(first - config.sliding_window, 0)
    begin, end = oldest // key_tile, pl.cdiv(inputs.keys[n], key_tile)
    share = pl.cdiv(end - begin, pl.num_programs(2))
    begin = begin + split * share
    step = partial(_add_keys, inputs, queries, n, key_tile, config)
    rows, lanes = queries.q.shape
    start = (jnp.full((rows, 1), NEVER), jnp.zeros((rows, 1)), jnp.zeros((rows, lanes)))
    top, total, values = lax.fori_loop(begin, jnp.minimum(begin + share, end), step, start)
    some = jnp.where(total == 0, 1.0, total)
    mass = jnp.where(total == 0, NEVER, top + jnp.log(some))
    index_in_tiles = n * inputs.tokens.shape[1] + queries.query
    index, inside = _grid((split, index_in_tiles, queries.head), queries.held, inputs.q.shape[2])
    plgpu.store(out_ref.at[index], values / some, mask=inside)
    plgpu.store(mass_ref.at[split, index_in_tiles, queries.head], mass[:, 0], mask=queries.held)


def _load_queries(inputs: _Inputs, n: Array, part: Array, group: int) -> _Queries:
    """Load tile n's queries in the part-th group of query heads; a key head has one group or more."""
    t, (T, H, hd) = inputs.tokens.shape[1], inputs.q.shape
    G = H // inputs.k_pool.shape[1]
    parts = pl.cdiv(G, group)
    kv = part // parts
    row = jnp.arange(max(_LEAST, pl.next_power_of_2(t * group)))
    query, within = row // group, part % parts * group + row % group
    head, held = kv * G + within, (query < t) & (within < G)
    token = plgpu.load(inputs.tokens.at[n, query], mask=held, other=T)
    index, inside = _grid((token, head), token < T, hd)
    q = plgpu.load(inputs.q.at[index], mask=inside, other=0)
    return _Queries(kv, held, query, head, q.astype(inputs.k_pool.dtype))


def _add_keys(
    inputs: _Inputs,
    queries: _Queries,
    n: Array,
    key_tile: int,
    config: MptConfig,
    step: Array,
    state: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array]:
    """Add `key_tile` keys to the state, top [r, 1], total [r, 1] and values [r, c]: one pass of the loop."""
    top, total, values = state
    block, keys = inputs.k_pool.shape[2], inputs.keys[n]
    slots = step * key_tile + jnp.arange(key_tile)
    owned = slots < keys
    pages = plgpu.load(inputs.tables.at[inputs.rows[n], slots // block], mask=owned, other=0)
    index, inside = _grid((pages, queries.kv, slots % block), owned, inputs.q.shape[2])
    dot = partial(jnp.dot, precision=operand_precision(queries.q.dtype), preferred_element_type=jnp.float32)
    products = dot(queries.q, plgpu.load(inputs.k_pool.at[index], mask=inside, other=0).T)  # [r, key_tile]
    slopes = plgpu.load(inputs.slopes.at[queries.head], mask=queries.held, other=0)[:, None]
    q_positions, k_positions = (inputs.first[n] + queries.query)[:, None], slots[None, :]
    s = biased_scores(products, slopes, q_positions, k_positions, config)
    visible = visible_keys(q_positions, k_positions, keys, config)
    top, total, weights, keep = rescale(top, total, s, visible)
    v = plgpu.load(inputs.v_pool.at[index], mask=inside, other=0)  # 0 in slots without a key
    return top, total, values * keep + dot(weights.astype(v.dtype), v)


def _grid(outer: tuple[Array, ...], held: Array, hd: int) -> tuple[tuple[Array, ...], Array]:
    """Combine indices (each [r] or []) with the lanes of a head -> indices of r rows by c lanes, and their mask [r, c].

    Registers hold powers of two: c is hd rounded up. Memory holds hd, and masked lanes are not accessed.
    """
    lanes = jnp.arange(pl.next_power_of_2(max(hd, _LEAST)))
    shape = (held.shape[0], lanes.shape[0])
    spread = [i if i.ndim == 0 else jnp.broadcast_to(i[:, None], shape) for i in outer]
    return (*spread, jnp.broadcast_to(lanes, shape)), held[:, None] & (lanes < hd)
