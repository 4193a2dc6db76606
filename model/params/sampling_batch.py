"""How the rows of a step are sampled."""

from typing import NamedTuple

from jax import Array


class SamplingBatch(NamedTuple):
    """Sampling parameters of a step's S rows. Padding rows are greedy and write nothing."""

    slot: Array  # [S] int32, the slot whose state is read; clamped to the slots there are
    write_slot: Array  # [S] int32, the slot whose state is written, no two the same; none where out of range
    temperature: Array  # [S] float32, 0 is greedy
    top_k: Array  # [S] int32, 0 keeps all
    top_p: Array  # [S] float32, 1 keeps all
    min_p: Array  # [S] float32, 0 keeps all
    repetition: Array  # [S] float32, 1 for none
    presence: Array  # [S] float32, 0 for none
    frequency: Array  # [S] float32, 0 for none
    biased: Array  # [S] bool, whether the slot's bias is added
    masked: Array  # [S] bool, whether the token mask applies
    seed: Array  # [S, 2] uint32, high and low half
    choice_index: Array  # [S] int32
    position: Array  # [S] int32, index in the sequence of the token to be sampled
    num_logprobs: Array  # [S] int32, number of most likely ids to list; -1 for no log probability at all
