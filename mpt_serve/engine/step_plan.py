"""A step as the device sees it: a few fields in one flat int32 array, in one of few shapes.

The host packs everything about a step (tokens, block tables, sampling parameters) into one array, so that a step costs
one transfer; the compiled step unpacks it with static slices. Shapes come from `token_buckets`, so that there are few
programs to compile.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax

from model.step import StepBatch
from mpt_serve.engine.sampler import SamplingBatch
from mpt_serve.engine.scheduler import Row, StepRows

# Stop ids of a request that can be masked while it is below min_tokens.
MAX_MASKED_IDS = 16

# In the order in which `pack` fills them.
_TOKEN_FIELDS = ("tokens", "positions", "slots")  # each [T] int32
_ROW_FIELDS = (  # each [R] int32; seeds are halves of a 64-bit number, the last three are float32 bits
    "query_start",
    "query_len",
    "context_len",
    "state_slot",
    "top_k",
    "choice_index",
    "seed_high",
    "seed_low",
    "temperature",
    "top_p",
    "min_p",
)
_NUM_FLOATS = 3


def step_shapes(max_num_seqs: int, max_num_batched_tokens: int) -> tuple[tuple[int, int], ...]:
    """(tokens, rows) to compile for, smallest first: about log2 of each limit.

    Decode-only steps have as many tokens as rows, in powers of two up to max_num_seqs. All others have powers of two
    of tokens from 16 on, and up to half as many rows; the largest takes whatever the limits allow.
    """
    if max_num_batched_tokens <= max_num_seqs:
        raise ValueError(f"max_num_batched_tokens must be above max_num_seqs={max_num_seqs}")
    decode = _powers_of_two(1, max_num_seqs)
    mixed = _powers_of_two(16, max_num_batched_tokens)
    shapes = {(rows, rows) for rows in decode} | {(tokens, min(tokens // 2, max_num_seqs)) for tokens in mixed[:-1]}
    return tuple(sorted(shapes | {(max_num_batched_tokens, max_num_seqs)}))


def choose_shape(shapes: Sequence[tuple[int, int]], step: StepRows) -> tuple[int, int]:
    """The smallest of the `step_shapes` that holds a step. As many tokens as rows means that every row decodes."""
    decode_only = step.num_decode == len(step.rows)
    return next(
        (tokens, rows)
        for tokens, rows in shapes
        if (tokens == rows) == decode_only and tokens >= step.num_tokens and rows >= len(step.rows)
    )


def _powers_of_two(start: int, stop: int) -> list[int]:
    """start, 2 start, 4 start ... below stop, then stop."""
    powers = []
    while start < stop:
        powers.append(start)
        start *= 2
    return [*powers, stop]


@dataclass(frozen=True)
class StepShape:
    """Static shape of a step: T tokens, R rows, W blocks per sequence, and the cache and state it refers to."""

    num_tokens: int
    num_rows: int
    max_blocks: int
    num_blocks: int
    block_size: int
    max_num_seqs: int

    @property
    def size(self) -> int:
        """Length of the packed array."""
        row_words = len(_ROW_FIELDS) + MAX_MASKED_IDS + self.max_blocks
        return 1 + len(_TOKEN_FIELDS) * self.num_tokens + row_words * self.num_rows

    def split(self, packed: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Views of a packed array (numpy or JAX): num_decode [1], token fields [3, T], row fields [F, R],
        masked ids [R, M], block tables [R, W]."""
        T, R = self.num_tokens, self.num_rows
        shapes = [(1,), (len(_TOKEN_FIELDS), T), (len(_ROW_FIELDS), R), (R, MAX_MASKED_IDS), (R, self.max_blocks)]
        views, start = [], 0
        for shape in shapes:
            stop = start + math.prod(shape)
            views.append(packed[start:stop].reshape(shape))
            start = stop
        return views[0], views[1], views[2], views[3], views[4]


def pack(step: StepRows, shape: StepShape) -> npt.NDArray[np.int32]:
    """Pack a step's rows, before anything else happens to their requests. -> [shape.size] int32

    Padding tokens write to no cache slot, padding rows are greedy and write no state.
    """
    packed = np.zeros(shape.size, np.int32)
    num_decode, token_fields, row_fields, masked_ids, block_tables = shape.split(packed)
    num_decode[0] = step.num_decode
    token_fields[2] = shape.num_blocks * shape.block_size
    row_fields[_ROW_FIELDS.index("state_slot")] = shape.max_num_seqs
    masked_ids[:] = -1

    rows, used = step.rows, step.num_tokens
    lengths = np.array([row.length for row in rows])
    query_start = np.cumsum(lengths) - lengths
    starts = np.array([row.start for row in rows])
    for index, row in enumerate(rows):
        block_tables[index, : len(row.request.blocks)] = row.request.blocks
        if row.samples and row.start + row.length - len(row.request.prompt_ids) < row.request.params.min_tokens:
            masked_ids[index, : len(row.request.stop_ids)] = sorted(row.request.stop_ids)
    row_of_token = np.repeat(np.arange(len(rows)), lengths)
    positions = np.arange(used) + np.repeat(starts - query_start, lengths)
    blocks, offsets = np.divmod(positions, shape.block_size)
    token_fields[0, :used] = [token for row in rows for token in _token_ids(row)]
    token_fields[1, :used] = positions
    token_fields[2, :used] = block_tables[row_of_token, blocks] * shape.block_size + offsets

    integers = row_fields[:-_NUM_FLOATS, : len(rows)]
    integers[0], integers[1], integers[2] = query_start, lengths, starts + lengths
    integers[3:] = np.array([_integer_words(row, shape) for row in rows], np.uint32).view(np.int32).T
    row_fields[-_NUM_FLOATS:, : len(rows)].view(np.float32)[:] = np.array([_float_words(row) for row in rows]).T
    return packed


def _token_ids(row: Row) -> list[int]:
    """The row's ids; -1 - slot stands for the last token that this slot of the device-side state holds."""
    ids = row.request.known_ids(row.start, row.start + row.length)
    if row.token_in_flight:
        assert row.request.slot is not None
        ids.append(-1 - row.request.slot)
    return ids


def _integer_words(row: Row, shape: StepShape) -> tuple[int, ...]:
    """state_slot, top_k, choice_index, seed_high, seed_low: rows that sample nothing write no state."""
    request, params = row.request, row.request.params
    if not row.samples or request.slot is None:
        return (shape.max_num_seqs, 0, 0, 0, 0)
    top_k = 0 if params.greedy else params.top_k
    return (request.slot, top_k, params.choice_index, request.seed >> 32, request.seed & 0xFFFFFFFF)


def _float_words(row: Row) -> tuple[float, float, float]:
    """temperature, top_p, min_p; greedy when the row samples nothing, so that it asks for no work."""
    params = row.request.params
    if not row.samples or params.greedy:
        return (0.0, 1.0, 0.0)
    return (params.temperature, params.top_p, params.min_p)


def unpack(packed: Array, last_tokens: Array, shape: StepShape) -> tuple[StepBatch, SamplingBatch, Array]:
    """On the device: packed [shape.size] int32 and the state, last_tokens [max_num_seqs] int32, to what a step needs.

    The third value, [R] int32, is where each row's sampled id goes in last_tokens (out of range for none).
    """
    num_decode, token_fields, row_fields, masked_ids, block_tables = shape.split(packed)
    tokens, positions, slots = token_fields
    row = dict(zip(_ROW_FIELDS, row_fields, strict=True))
    batch = StepBatch(
        tokens=jnp.where(tokens < 0, last_tokens[-1 - tokens], tokens),
        positions=positions,
        slots=slots,
        block_tables=block_tables,
        query_start=row["query_start"],
        query_len=row["query_len"],
        context_len=row["context_len"],
        num_decode=num_decode[0],
        decode_only=shape.num_tokens == shape.num_rows,
    )
    floats = lax.bitcast_convert_type(row_fields[-_NUM_FLOATS:], jnp.float32)
    sampling = SamplingBatch(
        temperature=floats[0],
        top_k=row["top_k"],
        top_p=floats[1],
        min_p=floats[2],
        seed=lax.bitcast_convert_type(jnp.stack([row["seed_high"], row["seed_low"]], axis=1), jnp.uint32),
        choice_index=row["choice_index"],
        position=row["context_len"],
        masked_ids=masked_ids,
    )
    return batch, sampling, row["state_slot"]
