"""The few shapes that steps are padded to, so that there are few programs to compile."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from jax import Array

from mpt_serve.engine.step_rows import StepRows

# In the order in which they are packed.
_TOKEN_FIELDS = ("tokens", "positions", "slots")  # each [T] int32
_ROW_FIELDS = ("query_start", "query_len", "context_len")  # each [R] int32

_Packed = TypeVar("_Packed", npt.NDArray[np.int32], Array)


class StepKey(NamedTuple):
    """Names the program of a step: T tokens, R rows and S samples at most; one token in every row, or any number."""

    num_tokens: int
    num_rows: int
    num_samples: int
    decode_only: bool


def step_shapes(
    max_num_seqs: int, max_num_batched_tokens: int, max_samples: int, ragged_decode: bool, row_tile: int | None = None
) -> tuple[StepKey, ...]:
    """Return the programs to compile, smallest first: about log2 of each limit of each kind.

    Small steps have as many tokens as rows and samples, in powers of two: for rows of one token each, and for draft
    tokens to be verified where max_samples is above max_num_seqs. With `ragged_decode` the kernels compute both in the
    same way, and one program serves both; a `row_tile` of 12 takes little more time than 8 rows, so that there is one
    of 12 too. All others have powers of two of tokens from 16 on, and up to half that many rows; the largest has
    whatever the limits allow.
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
    """Return the smallest of the `step_shapes` that holds a step."""
    decode_only = step.num_decode == len(step.rows)
    tokens, samples = step.num_tokens, step.num_samples
    return next(
        key
        for key in shapes
        if (decode_only or not key.decode_only)
        and key.num_tokens >= tokens
        and key.num_rows >= len(step.rows)
        and key.num_samples >= samples
    )


def _powers_of_two(start: int, stop: int) -> list[int]:
    """Return start, 2 start, 4 start ... below stop, then stop."""
    powers = []
    while start < stop:
        powers.append(start)
        start *= 2
    return [*powers, stop]


@dataclass(frozen=True)
class StepShape:
    """The static shape of a step: its key, W blocks per sequence, and the cache and slots that it refers to."""

    key: StepKey
    max_blocks: int
    num_blocks: int
    block_size: int
    max_num_seqs: int

    @property
    def size(self) -> int:
        """Return the length of the packed array of what is computed."""
        T, R, S, _ = self.key
        return 1 + len(_TOKEN_FIELDS) * T + (len(_ROW_FIELDS) + self.max_blocks) * R + S

    def split(self, packed: _Packed) -> tuple[_Packed, _Packed, _Packed, _Packed, _Packed]:
        """Return the parts of a packed array (for numpy, as views).

        num_decode [1], token fields [3, T], row fields [3, R], block tables [R, W], sampled tokens [S].
        """
        T, R, S, _ = self.key
        shapes = [(1,), (len(_TOKEN_FIELDS), T), (len(_ROW_FIELDS), R), (R, self.max_blocks), (S,)]
        views, start = [], 0
        for shape in shapes:
            stop = start + math.prod(shape)
            views.append(packed[start:stop].reshape(shape))
            start = stop
        return views[0], views[1], views[2], views[3], views[4]
