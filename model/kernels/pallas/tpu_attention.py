"""Paged attention for TPUs (Mosaic): one grid step for each run of pages that a tile of queries has.

The steps are listed before the launch, from the lengths, and the grid is as long as the list. Each step names the
blocks that it needs, so that Pallas' pipeline fetches the next step's pages while this one computes, across rows too.
Lowered and interpreted, not run on hardware.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from model.config.mpt_config import MptConfig
from model.kernels.pallas.key_tile import NEVER, biased_scores, head_slopes, operand_precision, rescale, visible_keys
from model.kernels.pallas.query_tiles import QueryTiles, decode_tiles, prefill_tiles, tokens_of
from model.params.step_batch import StepBatch

_LANES = 128
_STEP_BYTES = 2 << 20  # keys and values that one grid step fetches: enough to hide the fixed cost of a step
_STEP_PAGES = 16  # maximum; each is an operand that the pipeline tracks
_VMEM_BYTES = 10 << 20  # out of the 16 MiB that a kernel gets by default
_QUERY_ROWS = 512  # rows (queries times heads of a group) of a prefill tile, 128 queries at most


def paged_attention(
    q: Array,
    k_pool: Array,
    v_pool: Array,
    batch: StepBatch,
    config: MptConfig,
    *,
    slopes: Array | None = None,
    query_tile: int | None = None,
    key_pages: int | None = None,
    interpret: bool = False,
) -> Array:
    """Compute `layers.attention.paged_attention` on a TPU: q [T, H, hd] float32 -> [T, H, hd].

    Pools [N, Hkv, block, hd]. `slopes` [H] float32: of q's heads, where a device holds only some of them; None takes
    the config's. `query_tile` (prefill queries that share one pass over the keys) and `key_pages` (pages of one grid
    step) are for tuning. Float32 pools are multiplied exactly, bfloat16 ones as they are with float32 sums. Results of
    tokens of no row are 0. Raises ValueError for pools of any other type.

    Pools may be wider than hd, with zeros beyond it. On a TPU they should be where hd is not a multiple of 128: XLA
    keeps narrower pools in another layout and copies them whole for every kernel (and for the scatter of `write_kv`);
    a pool of whole lanes takes no more memory than that copy, and is updated in place.

    The list of pages lies in scalar memory, 1 MiB on a v5e: R * W must stay below about 170,000.
    """
    if k_pool.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(
            f"cache_dtype is {k_pool.dtype.name}, which the TPU kernel does not read; use bfloat16 or float32"
        )
    T, H, _ = q.shape
    slopes = head_slopes(config) if slopes is None else slopes
    attend = partial(_attend, q, k_pool, v_pool, batch.block_tables, slopes, config, key_pages, interpret)
    out = attend(decode_tiles(batch, T))
    if batch.decode_only:
        return out
    size = query_tile or max(16, min(128, _QUERY_ROWS * k_pool.shape[1] // H))
    prefilled = attend(prefill_tiles(batch, T, size))
    return jnp.where((jnp.arange(T) < batch.num_decode)[:, None, None], out, prefilled)


class _Launch(NamedTuple):
    """Sizes of one launch."""

    tiles: int
    kv_heads: int
    heads: int  # key heads of one grid step
    rows: int  # queries of a tile times query heads of a key head, padded to whole registers
    width: int  # of a head in the pools
    block: int
    pages: int  # of one grid step


class _Steps(NamedTuple):
    """The grid's steps in order, at most M; each is one tile of queries and P pages of keys. Read as scalars."""

    tile: Array  # [M] int32
    step: Array  # [M] int32, which run of P pages of its row
    pages: Array  # [M * P] int32, blocks of the pool
    first: Array  # [n] int32, `QueryTiles.first`
    keys: Array  # [n] int32, `QueryTiles.keys`


def _attend(
    q: Array,
    k_pool: Array,
    v_pool: Array,
    tables: Array,
    slopes: Array,
    config: MptConfig,
    key_pages: int | None,
    interpret: bool,
    tiles: QueryTiles,
) -> Array:
    """Compute all tiles in one launch -> [T, H, hd] float32, 0 for tokens of no tile."""
    (T, H, hd), (_, Hkv, block, width), (n, t) = q.shape, k_pool.shape, tiles.tokens.shape
    G, registers = H // Hkv, 32 // k_pool.dtype.itemsize
    rows = pl.cdiv(t * G, registers) * registers
    P = key_pages or _pages_per_step(Hkv, block, width, tables.shape[1], k_pool.dtype)
    heads = _heads_per_step(Hkv, rows, P * block, width, k_pool.dtype)
    launch = _Launch(n, Hkv, heads, rows, width, block, P)
    steps, count = _list_steps(tiles, tables, block, P, config.sliding_window)
    # The copy of the queries puts a tile's rows together; it is small beside the keys.
    grouped = q.astype(k_pool.dtype).at[tiles.tokens].get(mode="fill", fill_value=0).reshape(n, t, Hkv, G, hd)
    grouped = _pad(jnp.swapaxes(grouped, 1, 2).reshape(n, Hkv, t * G, hd), rows, width)
    row_slopes = _pad(jnp.tile(slopes.reshape(Hkv, G), (1, t))[..., None], rows, 1)  # [Hkv, rows, 1]
    offsets = (jnp.arange(rows, dtype=jnp.int32) // G)[:, None]  # [rows, 1] index of the row's query in the tile
    call = _kernel_call(launch, count, config, f"paged_attention_{t}_queries", interpret)
    out = call(*steps, grouped, row_slopes, offsets, *[k_pool] * P, *[v_pool] * P)[:, :, : t * G, :hd]
    return tokens_of(jnp.swapaxes(out.reshape(n, Hkv, t, G, hd), 1, 2).reshape(n, t, H, hd), tiles, T)


def _pad(x: Array, rows: int, columns: int) -> Array:
    """Pad x [..., r, c] with 0 -> [..., rows, columns]."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, rows - x.shape[-2]), (0, columns - x.shape[-1])])


def _pages_per_step(Hkv: int, block: int, width: int, longest: int, dtype: DTypeLike) -> int:
    page_bytes = 2 * Hkv * block * pl.cdiv(width, _LANES) * _LANES * jnp.dtype(dtype).itemsize
    fewest = pl.cdiv(_LANES, block)  # fewer would waste lanes of the scores' registers
    return max(1, min(max(_STEP_BYTES // page_bytes, fewest), _STEP_PAGES, longest))


def _heads_per_step(Hkv: int, rows: int, keys: int, width: int, dtype: DTypeLike) -> int:
    """Return the most key heads whose buffers fit: pages and query tiles (double-buffered), sums, scores."""
    lanes = pl.cdiv(width, _LANES) * _LANES
    pages = 2 * 2 * keys * lanes * jnp.dtype(dtype).itemsize
    queries = rows * lanes * 4 * (2 + 2 + 1) + 2 * rows * _LANES * 4
    scores = 3 * rows * pl.cdiv(keys, _LANES) * _LANES * 4
    fit = max(1, _VMEM_BYTES // (pages + queries + scores))
    return max(heads for heads in range(1, Hkv + 1) if Hkv % heads == 0 and heads <= fit)


def _list_steps(tiles: QueryTiles, tables: Array, block: int, P: int, window: int | None) -> tuple[_Steps, Array]:
    """List the steps -> the steps, and their number (at least 1, so that the grid is not empty)."""
    (n,), W = tiles.keys.shape, tables.shape[1]
    oldest = tiles.first - window if window is not None else jnp.zeros_like(tiles.first)
    begin = jnp.maximum(oldest, 0) // (P * block)  # [n]
    counts = jnp.where(tiles.keys > 0, pl.cdiv(tiles.keys, P * block) - begin, 0)
    ends = jnp.cumsum(counts)
    index = jnp.arange(n * pl.cdiv(W, P))  # [M]
    tile = jnp.minimum(jnp.searchsorted(ends, index, side="right", method="compare_all"), n - 1)
    step = begin[tile] + index - (ends - counts)[tile]
    page = step[:, None] * P + jnp.arange(P)  # [M, P]
    blocks = tables[tiles.rows[tile][:, None], jnp.minimum(page, W - 1)]
    # A page beyond the row's end repeats the block that its buffer already holds, so nothing is fetched.
    needed = page * block < tiles.keys[tile][:, None]
    source = lax.cummax(jnp.where(needed, index[:, None], 0))
    blocks = jnp.take_along_axis(blocks, source, axis=0)
    return _Steps(tile, step, blocks.reshape(-1), tiles.first, tiles.keys), jnp.maximum(ends[-1], 1)


def _kernel_call(launch: _Launch, count: Array, config: MptConfig, name: str, interpret: bool) -> Any:
    """Return the launch: steps, q [n, Hkv, rows, width], slopes, offsets, P times each pool -> as q, in float32."""
    n, Hkv, heads, rows, width, block, P = launch
    query = pl.BlockSpec((1, heads, rows, width), lambda g, i, tile, *_: (tile[i], g, 0, 0))
    row_slopes = pl.BlockSpec((heads, rows, 1), lambda g, *_: (g, 0, 0))
    offsets = pl.BlockSpec((rows, 1), lambda *_: (0, 0))
    page = [pl.BlockSpec((1, heads, block, width), partial(_page_index, P, p)) for p in range(P)]
    return pl.pallas_call(
        partial(_kernel, launch=launch, config=config),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(_Steps._fields),
            grid=(Hkv // heads, count),
            in_specs=[query, row_slopes, offsets, *page, *page],
            out_specs=query,
            scratch_shapes=[pltpu.VMEM((heads, rows, columns), jnp.float32) for columns in (1, 1, width)],
        ),
        out_shape=jax.ShapeDtypeStruct((n, Hkv, rows, width), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name=name,
    )


def _page_index(P: int, p: int, g: Array, i: Array, *steps: Any) -> tuple[Any, ...]:
    """Return the index of the p-th page of step i in a pool [N, Hkv, block, width]."""
    return _Steps(*steps).pages[i * P + p], g, 0, 0


def _kernel(*refs: Any, launch: _Launch, config: MptConfig) -> None:
    """Compute a step: `_Steps`, q [1, h, rows, width], slopes [h, rows, 1], offsets [rows, 1], pages, out, sums."""
    scalars, P = len(_Steps._fields), launch.pages
    steps, (q_ref, slopes_ref, offsets_ref, *pages), sums = _Steps(*refs[:scalars]), refs[scalars:-4], refs[-4:]
    out_ref, top, total, values = sums
    i = pl.program_id(1)
    tile, step = steps.tile[i], steps.step[i]
    keys, start = steps.keys[tile], step * P * launch.block

    def start_tile() -> None:
        top[...] = jnp.full_like(top, NEVER)
        total[...] = jnp.zeros_like(total)
        values[...] = jnp.zeros_like(values)

    def finish_tile() -> None:
        out_ref[0] = values[...] / jnp.where(total[...] == 0, 1.0, total[...])

    pl.when((i == 0) | (steps.tile[jnp.maximum(i - 1, 0)] != tile))(start_tile)
    k, v = (jnp.concatenate([ref[0] for ref in run], axis=1) for run in (pages[:P], pages[P:]))
    dot = partial(lax.dot_general, precision=operand_precision(k.dtype), preferred_element_type=jnp.float32)
    products = dot(q_ref[0], k, (((2,), (2,)), ((0,), (0,))))  # [h, rows, S] of k [h, S, width]
    q_positions = steps.first[tile] + offsets_ref[...]  # [rows, 1]
    k_positions = start + lax.broadcasted_iota(jnp.int32, (1, k.shape[1]), 1)
    visible = visible_keys(q_positions, k_positions, keys, config)
    s = biased_scores(products, slopes_ref[...], q_positions, k_positions, config)
    top[...], total[...], weights, keep = rescale(top[...], total[...], s, visible[None])
    # A weight of 0 does not cancel a value that is inf or nan, left by a block's last owner.
    owned = start + lax.broadcasted_iota(jnp.int32, (1, k.shape[1], 1), 1) < keys
    v = jnp.where(owned, v, jnp.zeros_like(v))
    values[...] = values[...] * keep + dot(weights.astype(v.dtype), v, (((2,), (1,)), ((0,), (0,))))
    pl.when(start + k.shape[1] >= keys)(finish_tile)
