"""The inputs of a step as the device sees them: a few fields in flat int32 arrays, in one of the `step_shapes`.

The host packs what a step computes (tokens, block tables) into one array and what it samples (parameters) into another,
so that a step costs two transfers; the compiled programs unpack them with static slices.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax

from model.params.sampling_batch import SamplingBatch
from model.params.step_batch import StepBatch
from mpt_serve.engine.step_rows import Row, StepRows
from mpt_serve.engine.step_shapes import StepShape

Packed = npt.NDArray[np.int32]
PackedEmbeds = tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]  # the fields of `TokenEmbeds`

# In the order in which they are packed.
SAMPLE_INTEGERS = (  # each [S] int32; seeds are halves of a 64-bit number
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


def pack_forward(step: StepRows, shape: StepShape) -> Packed:
    """Pack what a step computes as int32 [shape.size], before anything else happens to its requests.

    Padding tokens write to no cache slot; padding samples are of token 0.
    """
    packed = np.zeros(shape.size, np.int32)
    num_decode, token_fields, row_fields, block_tables, sampled = shape.split(packed)
    num_decode[0] = step.num_decode
    token_fields[2] = shape.num_blocks * shape.block_size

    rows, used = step.rows, step.num_tokens
    if step.num_decode == len(rows) == step.num_samples:
        _pack_decodes(rows, shape, token_fields, row_fields, block_tables)
        sampled[:used] = row_fields[0, :used]
        return packed
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


def _pack_decodes(
    rows: Sequence[Row], shape: StepShape, token_fields: Packed, row_fields: Packed, block_tables: Packed
) -> None:
    """Pack rows of one token each, as `pack_forward` does: most steps have nothing else."""
    positions = [row.start for row in rows]
    slots = []
    for index, row in enumerate(rows):
        blocks = row.request.blocks
        block_tables[index, : len(blocks)] = blocks
        block, offset = divmod(row.start, shape.block_size)
        slots.append(blocks[block] * shape.block_size + offset)
    count = len(rows)
    token_fields[:, :count] = [_token_ids(row)[0] for row in rows], positions, slots
    row_fields[0, :count] = range(count)
    row_fields[1, :count] = 1
    row_fields[2, :count] = positions
    row_fields[2, :count] += 1


def _token_ids(row: Row) -> list[int]:
    """Return the row's ids; -1 - slot stands for the last token in this slot of the device's state."""
    ids = row.request.known_ids(row.start, row.stop)
    if row.token_in_flight:
        assert row.request.slot is not None
        ids.append(-1 - row.request.slot)
    return [*ids, *row.drafts]


def pack_embeds(step: StepRows, num_tokens: int, width: int) -> PackedEmbeds | None:
    """Return the embeddings of prompts among a step's tokens, padded to num_tokens; None where there are none."""
    packed: PackedEmbeds | None = None
    begin = 0
    for row in step.rows:
        own = row.request.embeds
        if own is not None and (part := own.between(row.start, row.stop)).start < part.stop:
            if packed is None:
                packed = np.zeros((num_tokens, width), np.float32), np.zeros(num_tokens, np.bool_)
            tokens = own.positions[part] + (begin - row.start)
            packed[0][tokens], packed[1][tokens] = own.rows[part], True
        begin += row.length
    return packed


def pack_sampling(step: StepRows, num_samples: int, max_num_seqs: int) -> Packed:
    """Pack how a step samples as int32 [F, num_samples], before anything else happens to its requests.

    Padding samples are greedy and write no slot state.
    """
    packed = np.zeros((len(SAMPLE_INTEGERS) + len(_SAMPLE_FLOATS), num_samples), np.int32)
    integers, floats = packed[: len(SAMPLE_INTEGERS)], packed[len(SAMPLE_INTEGERS) :].view(np.float32)
    integers[SAMPLE_INTEGERS.index("write_slot")] = max_num_seqs
    integers[SAMPLE_INTEGERS.index("num_logprobs")] = -1
    floats[:] = np.array(_GREEDY_FLOATS, np.float32)[:, None]
    samples = [(row, sample) for row in step.rows for sample in range(row.samples)]
    if samples:
        words = np.array([_integer_words(row, sample, max_num_seqs) for row, sample in samples], np.int64)
        integers[:, : len(samples)] = words.astype(np.uint32).view(np.int32).T
        floats[:, : len(samples)] = np.array([_float_words(row) for row, _ in samples], np.float32).T
    return packed


def _integer_words(row: Row, sample: int, max_num_seqs: int) -> tuple[int, ...]:
    """Return the integers of one sample, in the order of their fields."""
    request, params = row.request, row.request.params
    assert request.slot is not None
    num_logprobs = -1 if params.logprobs is None else params.logprobs
    return (
        request.slot,
        # The device does not know which draft is the last right one: the host provides the next token.
        max_num_seqs if row.drafts else request.slot,
        0 if params.greedy else params.top_k,
        request.choice_index,
        row.stop - row.samples + 1 + sample,
        num_logprobs,
        bool(params.logit_bias),
        row.masked,
        request.seed >> 32,
        request.seed & 0xFFFFFFFF,
    )


def _float_words(row: Row) -> tuple[float, ...]:
    """Return the floats of one sample, in the order of their fields."""
    params = row.request.params
    penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
    filters = (0.0, 1.0, 0.0) if params.greedy else (params.temperature, params.top_p, params.min_p)
    return (*filters, *penalties)


def unpack_forward(packed: Array, last_tokens: Array, shape: StepShape) -> tuple[StepBatch, Array]:
    """Unpack, on the device, what `pack_forward` packed [shape.size] int32.

    last_tokens: [max_num_seqs] int32, last sampled token of each slot. The second value, [S] int32, are the tokens
    after which an id is sampled.
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
    """Unpack, on the device, what `pack_sampling` packed."""
    field = dict(zip(SAMPLE_INTEGERS, packed, strict=False))
    floats = lax.bitcast_convert_type(packed[len(SAMPLE_INTEGERS) :], jnp.float32)
    seed = jnp.stack([field.pop("seed_high"), field.pop("seed_low")], axis=1)
    return SamplingBatch(
        **{name: field[name] for name in ("slot", "write_slot", "top_k", "choice_index", "position", "num_logprobs")},
        biased=field["biased"] != 0,
        masked=field["masked"] != 0,
        seed=lax.bitcast_convert_type(seed, jnp.uint32),
        **dict(zip(_SAMPLE_FLOATS, floats, strict=True)),
    )
