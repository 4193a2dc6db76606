"""MPT's attention: the score of a query and a key, and two ways to run over the keys.

`score` is the single definition (llm-foundry `models/layers/attention.py`): scale, soft cap, ALiBi, causal and window
mask, all in float32. `dense_attention` reads whole sequences; `paged_attention` reads a ragged batch out of the paged
cache, block by block with a running softmax (Milakov and Gimelshein 2018), so that the cost grows with the real
lengths.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from model.config.mpt_config import MptConfig
from model.ops.alibi import alibi_slopes
from model.ops.precision import product_precision
from model.params.alibi_horizon import first_pages
from model.params.kv_cache import LayerCache, read_blocks
from model.params.step_batch import StepBatch

_QUERY_TILE = 32  # prefill queries that share one pass over the keys
_DECODE_GROUP = 8  # decode rows that walk their pages together; a pass is as long as the longest of them
_DENSE_QUERIES = 512  # bounds dense_attention's scores to [B, H, 512, S]
_NEVER = float(np.finfo(np.float32).min)  # finite, so that a row with no key yet stays free of nan


def head_slopes(config: MptConfig, slopes: ArrayLike | None = None) -> Array:
    """Return the ALiBi slopes [H]: `slopes` where heads are in another order, else the config's."""
    return jnp.asarray(alibi_slopes(config.n_heads, config.alibi_bias_max) if slopes is None else slopes)


def score(
    q: Array,
    k: Array,
    q_positions: Array,
    k_positions: Array,
    config: MptConfig,
    slopes: ArrayLike | None = None,
) -> Array:
    """Return the masked scores of queries against keys.

    q [..., Tq, Hkv, G, hd] and k [..., S, Hkv, hd] float32 or bfloat16, positions [..., Tq] and [..., S] int32
    -> [..., Hkv, G, Tq, S] float32. Query head h = kv * G + g reads key head kv. Bias and mask come from positions
    alone: -slope * (i - j), never a bias anchored at the end of a buffer.
    """
    precision = product_precision(k.dtype)
    s = jnp.einsum("...thgd,...shd->...hgts", q, k, precision=precision, preferred_element_type=jnp.float32)
    s = _scaled(s, config)
    distance = q_positions[..., :, None] - k_positions[..., None, :]  # [..., Tq, S]
    if config.alibi:
        per_head = head_slopes(config, slopes).reshape(config.kv_n_heads, -1)
        s = s - per_head[:, :, None, None] * distance[..., None, None, :, :].astype(jnp.float32)
    visible = distance >= 0
    if config.sliding_window is not None:
        visible &= distance <= config.sliding_window
    return jnp.where(visible[..., None, None, :, :], s, _NEVER)


def _scaled(products: Array, config: MptConfig) -> Array:
    """Return the scores of dot products, before bias and mask."""
    s = products * config.softmax_scale
    cap = config.attn_logit_softcap
    return s if cap is None else cap * jnp.tanh(s / cap)


def dense_attention(
    q: Array, k: Array, v: Array, positions: Array, config: MptConfig, slopes: ArrayLike | None = None
) -> Array:
    """Attend causally over whole sequences: q [B, T, H, hd], k, v [B, T, Hkv, hd], positions [T] -> [B, T, H, hd]."""
    B, T, H, hd = q.shape
    q = q.reshape(B, T, config.kv_n_heads, -1, hd)

    def attend(q: Array, q_positions: Array) -> Array:  # a slice of the queries against all keys
        weights = jax.nn.softmax(score(q, k, q_positions, positions, config, slopes), axis=-1)  # [B, Hkv, G, t, T]
        return jnp.einsum("bhgts,bshd->bthgd", weights, v.astype(jnp.float32), precision=product_precision(v.dtype))

    if _DENSE_QUERIES >= T:
        return attend(q, positions).reshape(B, T, H, hd)
    pad = -T % _DENSE_QUERIES
    tiles = jnp.pad(q, ((0, 0), (0, pad), (0, 0), (0, 0), (0, 0)))
    tiles = jnp.moveaxis(tiles.reshape(B, -1, _DENSE_QUERIES, *q.shape[2:]), 1, 0)  # [n, B, 512, Hkv, G, hd]
    tile_positions = jnp.pad(positions, (0, pad)).reshape(-1, _DENSE_QUERIES)
    out = lax.map(lambda tile: attend(*tile), (tiles, tile_positions))
    return jnp.moveaxis(out, 0, 1).reshape(B, -1, H, hd)[:, :T]


def paged_attention(
    q: Array,
    layer: LayerCache,
    batch: StepBatch,
    config: MptConfig,
    *,
    slopes: ArrayLike | None = None,
    alibi_horizon: bool = True,
) -> Array:
    """Attend from a ragged step over the paged cache, into which the step's own keys are already written.

    q [T, H, hd] float32 -> [T, H, hd] float32. Rows of `batch` are decode rows (one query) first, then prefill chunks;
    results beyond the last row's tokens are undefined. `slopes` as of `head_slopes`. Keys of provably
    negligible weight are skipped (`model.params.alibi_horizon`), unless `alibi_horizon` is False.
    """
    if not alibi_horizon:
        layer = replace(layer, key_norms=None)
    attend = partial(_attend_pages, layer=layer, config=config, slopes=head_slopes(config, slopes))
    T, H, hd = q.shape
    grouped = q.reshape(T, config.kv_n_heads, -1, hd)  # [T, Hkv, G, hd]
    R = batch.query_start.shape[0]
    group = min(_DECODE_GROUP, R)
    # A tile is written whole and may run over into the next row's part, which is written after it.
    spare = max(group, 0 if batch.decode_only else _QUERY_TILE)
    padded = jnp.pad(grouped, ((0, spare), (0, 0), (0, 0), (0, 0)))
    out = _decode_rows(jnp.zeros_like(padded), padded, batch, attend, group)
    if not batch.decode_only:
        out = _prefill_rows(out, padded, batch, attend)
    return out[:T].reshape(T, H, hd)


def _decode_rows(out: Array, q: Array, batch: StepBatch, attend: Callable[..., Array], group: int) -> Array:
    """Fill out [T + spare, Hkv, G, hd] for the decode rows, `group` of them at a time; row r's query is token r."""

    def body(i: Array, out: Array) -> Array:
        start = jnp.minimum(i * group, batch.query_start.shape[0] - group)
        lengths = lax.dynamic_slice_in_dim(batch.context_len, start, group)  # [g]
        lengths = jnp.where(start + jnp.arange(group) < batch.num_decode, lengths, 0)
        tables = lax.dynamic_slice_in_dim(batch.block_tables, start, group)  # [g, W]
        queries = lax.dynamic_slice_in_dim(q, start, group)[:, None]  # [g, 1, Hkv, G, hd]
        rows = attend(queries, (lengths - 1)[:, None], tables, lengths)
        return lax.dynamic_update_slice_in_dim(out, rows[:, 0], start, 0)

    return lax.fori_loop(0, (batch.num_decode + group - 1) // group, body, out)


def _prefill_rows(out: Array, q: Array, batch: StepBatch, attend: Callable[..., Array]) -> Array:
    """Fill out [T + spare, Hkv, G, hd] for the rows after the decode rows, tile by tile of each row's queries."""

    def row(r: Array, out: Array) -> Array:
        first = batch.context_len[r] - batch.query_len[r]  # position of the row's first query

        def body(i: Array, out: Array) -> Array:
            at = batch.query_start[r] + i * _QUERY_TILE
            positions = first + i * _QUERY_TILE + jnp.arange(_QUERY_TILE)
            keys = jnp.minimum(batch.context_len[r], first + (i + 1) * _QUERY_TILE)  # none beyond the tile's last query
            queries = lax.dynamic_slice_in_dim(q, at, _QUERY_TILE)[None]
            table = batch.block_tables[r][None]
            values = attend(queries, positions[None], table, keys[None])
            return lax.dynamic_update_slice_in_dim(out, values[0], at, 0)

        return lax.fori_loop(0, (batch.query_len[r] + _QUERY_TILE - 1) // _QUERY_TILE, body, out)

    return lax.fori_loop(batch.num_decode, batch.query_start.shape[0], row, out)


def _attend_pages(
    q: Array,
    positions: Array,
    tables: Array,
    lengths: Array,
    layer: LayerCache,
    config: MptConfig,
    slopes: Array,
) -> Array:
    """Run the softmax over the pages of n sequences at once.

    q [n, t, Hkv, G, hd], positions [n, t], tables [n, W], lengths [n] keys each -> [n, t, Hkv, G, hd] float32.
    """
    n, t, Hkv, G, hd = q.shape
    block = layer.keys.shape[2]
    first = jnp.zeros((), jnp.int32)
    needed = None  # [n, Hkv, G, t] the first page that a query reads
    if config.sliding_window is not None:
        oldest = jnp.where(lengths > 0, positions[:, 0] - config.sliding_window, jnp.iinfo(jnp.int32).max)
        first = jnp.maximum(jnp.min(oldest), 0) // block
    if layer.key_norms is not None and config.alibi:
        own = _own_scores(q, positions, tables, layer, config)
        needed = first_pages(q, own, positions, layer.key_norms, tables, first, slopes, config)
        first = jnp.min(jnp.where(lengths[:, None, None, None] > 0, needed, jnp.iinfo(jnp.int32).max))

    def body(page: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, values = state  # [n, Hkv, G, t], the same, [n, Hkv, G, t, hd]
        blocks = tables[:, page]  # [n]
        k = jnp.swapaxes(read_blocks(layer.keys, layer.key_scales, blocks), 1, 2)  # [n, block, Hkv, hd]
        key_positions = jnp.broadcast_to(page * block + jnp.arange(block), (n, block))
        s = score(q, k, positions, key_positions, config, slopes)  # [n, Hkv, G, t, block]
        if needed is not None:
            s = jnp.where(page >= needed[..., None], s, _NEVER)
        new_top = jnp.maximum(top, s.max(axis=-1))
        p = jnp.exp(s - new_top[..., None])
        p = jnp.where(s == _NEVER, 0.0, p)
        keep = jnp.exp(top - new_top)
        # A weight of 0 does not cancel a value that is inf or nan, which a block's last owner may have left.
        owned = (key_positions < lengths[:, None])[:, None, :, None]
        v = read_blocks(layer.values, layer.value_scales, blocks)  # [n, Hkv, block, hd]
        precision = product_precision(v.dtype)
        v = jnp.where(owned, v.astype(jnp.float32), 0.0)
        weighted = jnp.einsum("nhgts,nhsd->nhgtd", p, v, precision=precision)
        return new_top, total * keep + p.sum(axis=-1), values * keep[..., None] + weighted

    shape = (n, Hkv, G, t)
    state = (jnp.full(shape, _NEVER), jnp.zeros(shape), jnp.zeros((*shape, hd)))
    pages = (jnp.max(lengths) + block - 1) // block
    _, total, values = lax.fori_loop(first, pages, body, state)
    values = values / jnp.where(total == 0, 1.0, total)[..., None]
    return jnp.moveaxis(values, 3, 1)


def _own_scores(q: Array, positions: Array, tables: Array, layer: LayerCache, config: MptConfig) -> Array:
    """Return the scores [n, Hkv, G, t] of queries and the keys at their own positions; see `_attend_pages`."""
    block = layer.keys.shape[2]
    indices = jnp.maximum(positions, 0)
    blocks = jnp.take_along_axis(tables, indices // block, axis=1, mode="clip")  # [n, t]
    k = layer.keys[blocks, :, indices % block].astype(jnp.float32)  # [n, t, Hkv, hd]
    if layer.key_scales is not None:
        k = k * layer.key_scales[blocks, :, indices % block][..., None]
    return jnp.moveaxis(_scaled(jnp.sum(q * k[:, :, :, None], axis=-1), config), 1, 3)
