"""Packs the inputs of steps that follow each other: most differ from the one before in a few numbers."""

from dataclasses import dataclass

from mpt_serve.engine.step_inputs import SAMPLE_INTEGERS, Packed, pack_forward, pack_sampling
from mpt_serve.engine.step_rows import Row, StepRows
from mpt_serve.engine.step_shapes import StepShape

_POSITION = SAMPLE_INTEGERS.index("position")


@dataclass(slots=True)
class _Before:
    """The step before, where all its rows were decode rows: what was packed for it, which is not modified."""

    shape: StepShape
    rows: list[Row]
    forward: Packed
    sampling: Packed


class StepPacker:
    """Packs steps, all of them in the order of their scheduling, as `pack_forward` and `pack_sampling` do.

    Where the same requests have one token each in two steps running, the second one's inputs are made from the first
    one's: every position is one further, and now and then a block is new.
    """

    def __init__(self, max_num_seqs: int) -> None:
        self._max_num_seqs = max_num_seqs
        self._before: _Before | None = None

    def pack(self, step: StepRows, shape: StepShape) -> tuple[Packed, Packed]:
        """Return what a step computes and how it samples, before anything else happens to its requests."""
        before, self._before = self._before, None
        if before is not None and before.shape == shape and _continues(before.rows, step.rows):
            forward, sampling = _next_forward(before.forward, step.rows, shape), before.sampling.copy()
            sampling[_POSITION, : len(step.rows)] += 1
        else:
            sampling = pack_sampling(step, shape.key.num_samples, self._max_num_seqs)
            forward = pack_forward(step, shape)
        if step.num_decode == len(step.rows) == step.num_samples:
            self._before = _Before(shape, step.rows, forward, sampling)
        return forward, sampling


def _continues(before: list[Row], rows: list[Row]) -> bool:
    """Return whether each row is the token after that of the same row before, both sampled on the device.

    A request that has given up its slot meanwhile has had a row of another kind since, or none.
    """
    if len(before) != len(rows):
        return False
    for old, row in zip(before, rows, strict=True):
        same = row.request is old.request and row.start == old.start + 1 and row.length == 1 and not row.drafts
        if not (same and old.token_in_flight and row.token_in_flight) or row.request.token_masks is not None:
            return False
    return True


def _next_forward(before: Packed, rows: list[Row], shape: StepShape) -> Packed:
    packed = before.copy()
    count, size = len(rows), shape.block_size
    _, token_fields, row_fields, block_tables, _ = shape.split(packed)
    token_fields[1:, :count] += 1  # positions and cache slots
    row_fields[2, :count] += 1  # lengths of contexts
    for index, row in enumerate(rows):
        if row.start % size == 0:
            blocks = row.request.blocks
            block_tables[index, : len(blocks)] = blocks
            token_fields[2, index] = blocks[row.start // size] * size
    return packed
