"""A step as the device sees it: a few fields in flat int32 arrays, in one of few shapes.

The host packs what a step computes (tokens, block tables) into one array and what it samples (parameters) into another,
so that a step costs two transfers; the compiled programs unpack them with static slices. Shapes come from
`step_shapes`, so that there are few programs to compile.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax

from model.params.sampling_batch import SamplingBatch
from model.params.step_batch import StepBatch
from mpt_serve.engine.scheduler import Row, StepRows

Packed = npt.NDArray[np.int32]

# In the order in which they are packed.
_TOKEN_FIELDS = ("tokens", "positions", "slots")  # each [T] int32
_ROW_FIELDS = ("query_start", "query_len", "context_len")  # each [R] int32
_SAMPLE_INTEGERS = (  # each [S] int32; seeds are halves of a 64-bit number
    "slot",
    "write_slot",
    "top_k",
    "choice_index",
    "position",
    "num_logprobs",
    "biased",
    "masked",
    "seed_high",
    "seed_low",
)
_SAMPLE_FLOATS = ("temperature", "top_p", "min_p", "repetition", "presence", "frequency")  # [S] float32 bits
_GREEDY_FLOATS = (0.0, 1.0, 0.0, 1.0, 0.0, 0.0)


class StepKey(NamedTuple):
    """Which program a step takes: T tokens, R rows and S samples at most; one token in every row, or any number."""

    num_tokens: int
    num_rows: int
    num_samples: int
    decode_only: bool


def step_shapes(
    max_num_seqs: int, max_num_batched_tokens: int, max_samples: int, ragged_decode: bool, row_tile: int | None = None
) -> tuple[StepKey, ...]:
    """The programs to compile, smallest first: about log2 of each limit of each kind.

    Small steps have as many tokens as rows and samples, in powers of two: for rows of one token each, and for drafts
    to be verified where max_samples is above max_num_seqs. With `ragged_decode` the kernels do both alike, and one
    program does; a `row_tile` of 12 takes little more time than 8 rows, so that there is one of 12 too. All others have
    powers of two of tokens from 16 on, and up to half as many rows; the largest takes whatever the limits allow.
    """
    small = [StepKey(n, n, n, not ragged_decode) for n in _powers_of_two(1, max_num_seqs)]
    if ragged_decode and row_tile is not None and max_samples > row_tile:
        small.append(StepKey(row_tile, min(row_tile, max_num_seqs), row_tile, False))
    if max_samples > max_num_seqs:
        tokens = min(max_samples, max_num_batched_tokens)
        small += [StepKey(n, min(n, max_num_seqs), n, False) for n in _powers_of_two(2, tokens)]
    mixed = [
        StepKey(n, min(n // 2, max_num_seqs), min(n // 2, max_samples), False)
        for n in _powers_of_two(16, max_num_batched_tokens)[:-1]
    ]
    largest = StepKey(max_num_batched_tokens, max_num_seqs, min(max_samples, max_num_batched_tokens), False)
    return tuple(sorted({*small, *mixed, largest}))


def choose_shape(shapes: Sequence[StepKey], step: StepRows) -> StepKey:
    """The smallest of the `step_shapes` that holds a step."""
    decode_only = step.num_decode == len(step.rows)
    return next(
        key
        for key in shapes
        if (decode_only or not key.decode_only)
        and key.num_tokens >= step.num_tokens
        and key.num_rows >= len(step.rows)
        and key.num_samples >= step.num_samples
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
    """Static shape of a step: its key, W blocks per sequence, and the cache and state that it refers to."""

    key: StepKey
    max_blocks: int
    num_blocks: int
    block_size: int
    max_num_seqs: int

    @property
    def size(self) -> int:
        """Length of the packed array of what is computed."""
        T, R, S, _ = self.key
        return 1 + len(_TOKEN_FIELDS) * T + (len(_ROW_FIELDS) + self.max_blocks) * R + S

    def split(self, packed: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Views of a packed array (numpy or JAX): num_decode [1], token fields [3, T], row fields [3, R],
        block tables [R, W], sampled tokens [S]."""
        T, R, S, _ = self.key
        shapes = [(1,), (len(_TOKEN_FIELDS), T), (len(_ROW_FIELDS), R), (R, self.max_blocks), (S,)]
        views, start = [], 0
        for shape in shapes:
            stop = start + math.prod(shape)
            views.append(packed[start:stop].reshape(shape))
            start = stop
        return views[0], views[1], views[2], views[3], views[4]


def pack_forward(step: StepRows, shape: StepShape) -> Packed:
    """Pack what a step computes, before anything else happens to its requests. -> [shape.size] int32

    Padding tokens write to no cache slot; padding samples are of token 0.
    """
    packed = np.zeros(shape.size, np.int32)
    num_decode, token_fields, row_fields, block_tables, sampled = shape.split(packed)
    num_decode[0] = step.num_decode
    token_fields[2] = shape.num_blocks * shape.block_size

    rows, used = step.rows, step.num_tokens
    lengths = np.array([row.length for row in rows])
    query_start = np.cumsum(lengths) - lengths
    starts = np.array([row.start for row in rows])
    for index, row in enumerate(rows):
        block_tables[index, : len(row.request.blocks)] = row.request.blocks
    row_of_token = np.repeat(np.arange(len(rows)), lengths)
    positions = np.arange(used) + np.repeat(starts - query_start, lengths)
    blocks, offsets = np.divmod(positions, shape.block_size)
    token_fields[0, :used] = [token for row in rows for token in _token_ids(row)]
    token_fields[1, :used] = positions
    token_fields[2, :used] = block_tables[row_of_token, blocks] * shape.block_size + offsets
    row_fields[:, : len(rows)] = query_start, lengths, starts + lengths
    ends = zip(query_start + lengths, rows, strict=True)
    sampled[: step.num_samples] = [i for end, row in ends for i in range(end - row.samples, end)]
    return packed


def _token_ids(row: Row) -> list[int]:
    """The row's ids; -1 - slot stands for the last token that this slot of the device-side state holds."""
    ids = row.request.known_ids(row.start, row.stop)
    if row.token_in_flight:
        assert row.request.slot is not None
        ids.append(-1 - row.request.slot)
    return [*ids, *row.drafts]


def pack_sampling(step: StepRows, num_samples: int, max_num_seqs: int) -> Packed:
    """Pack how a step samples, before anything else happens to its requests. -> [F, num_samples] int32

    Padding samples are greedy and leave no trace in the state.
    """
    packed = np.zeros((len(_SAMPLE_INTEGERS) + len(_SAMPLE_FLOATS), num_samples), np.int32)
    integers, floats = packed[: len(_SAMPLE_INTEGERS)], packed[len(_SAMPLE_INTEGERS) :].view(np.float32)
    integers[_SAMPLE_INTEGERS.index("write_slot")] = max_num_seqs
    integers[_SAMPLE_INTEGERS.index("num_logprobs")] = -1
    floats[:] = np.array(_GREEDY_FLOATS, np.float32)[:, None]
    samples = [(row, sample) for row in step.rows for sample in range(row.samples)]
    if samples:
        words = np.array([_integer_words(row, sample, max_num_seqs) for row, sample in samples], np.int64)
        integers[:, : len(samples)] = words.astype(np.uint32).view(np.int32).T
        floats[:, : len(samples)] = np.array([_float_words(row) for row, _ in samples], np.float32).T
    return packed


def _integer_words(row: Row, sample: int, max_num_seqs: int) -> tuple[int, ...]:
    """The integers of one sample, in the order of their fields."""
    request, params = row.request, row.request.params
    assert request.slot is not None
    num_logprobs = -1 if params.logprobs is None else params.logprobs
    return (
        request.slot,
        # Which draft is the last that was right is not known on the device: the host feeds the next token.
        max_num_seqs if row.drafts else request.slot,
        0 if params.greedy else params.top_k,
        request.choice_index,
        row.stop - row.samples + 1 + sample,
        num_logprobs,
        bool(params.logit_bias),
        is_masked(row),
        request.seed >> 32,
        request.seed & 0xFFFFFFFF,
    )


def is_masked(row: Row) -> bool:
    """Some id may not be sampled at some of the row's places."""
    return row.samples > 0 and row.request.limits is not None and row.request.limits.apply(generated_before(row))


def generated_before(row: Row) -> int:
    """Ids that the request has generated before the first that the row samples."""
    return row.stop - row.samples + 1 - len(row.request.prompt_ids)


def _float_words(row: Row) -> tuple[float, ...]:
    params = row.request.params
    penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
    drawing = (0.0, 1.0, 0.0) if params.greedy else (params.temperature, params.top_p, params.min_p)
    return (*drawing, *penalties)


def unpack_forward(packed: Array, last_tokens: Array, shape: StepShape) -> tuple[StepBatch, Array]:
    """On the device: packed [shape.size] int32 and the state's last_tokens [max_num_seqs] int32 to what a step needs.

    The second value, [S] int32, are the tokens after which an id is sampled.
    """
    num_decode, token_fields, row_fields, block_tables, sampled = shape.split(packed)
    tokens, positions, slots = token_fields
    query_start, query_len, context_len = row_fields
    batch = StepBatch(
        tokens=jnp.where(tokens < 0, last_tokens[-1 - tokens], tokens),
        positions=positions,
        slots=slots,
        block_tables=block_tables,
        query_start=query_start,
        query_len=query_len,
        context_len=context_len,
        num_decode=num_decode[0],
        decode_only=shape.key.decode_only,
    )
    return batch, sampled


def unpack_sampling(packed: Array) -> SamplingBatch:
    """On the device: what `pack_sampling` packed."""
    field = dict(zip(_SAMPLE_INTEGERS, packed, strict=False))
    floats = lax.bitcast_convert_type(packed[len(_SAMPLE_INTEGERS) :], jnp.float32)
    seed = jnp.stack([field.pop("seed_high"), field.pop("seed_low")], axis=1)
    return SamplingBatch(
        **{name: field[name] for name in ("slot", "write_slot", "top_k", "choice_index", "position", "num_logprobs")},
        biased=field["biased"] != 0,
        masked=field["masked"] != 0,
        seed=lax.bitcast_convert_type(seed, jnp.uint32),
        **dict(zip(_SAMPLE_FLOATS, floats, strict=True)),
    )
