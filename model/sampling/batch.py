"""The records that sampling works on: parameters of a step's rows, per-slot state, and kernels."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.sharding import Sharding

PROMPT = 2**30
"""Added to the count of an id that the prompt has; the rest of the count is how often the id was generated."""


class SamplingBatch(NamedTuple):
    """Sampling parameters of a step's rows. Padding rows are greedy and write nothing."""

    slot: Array  # [S] int32, row of the slot state to read; clamped to the existing rows
    write_slot: Array  # [S] int32, row of the slot state to write, no two the same; out of range writes nothing
    temperature: Array  # [S] float32, 0 is greedy
    top_k: Array  # [S] int32, 0 keeps all
    top_p: Array  # [S] float32, 1 keeps all
    min_p: Array  # [S] float32, 0 keeps all
    repetition: Array  # [S] float32, 1 for none
    presence: Array  # [S] float32, 0 for none
    frequency: Array  # [S] float32, 0 for none
    biased: Array  # [S] bool, whether the slot's bias is added
    masked: Array  # [S] bool, whether the mask is applied
    seed: Array  # [S, 2] uint32, high and low half
    choice_index: Array  # [S] int32
    position: Array  # [S] int32, position in the sequence of the token to be sampled
    num_logprobs: Array  # [S] int32, number of most likely ids to list; -1 for no log probabilities at all


class SamplerState(NamedTuple):
    """What the device remembers of each slot from step to step."""

    last_tokens: Array  # [slots] int32, sampled last
    counts: Array  # [slots, V] int32, times generated, + PROMPT where the prompt has the id
    bias: Array  # [slots, V] float32


class SamplingKernels(NamedTuple):
    """Kernels that replace `sampler.choose_ids` and `logprobs.log_probabilities`."""

    # (logits [S, V], batch, masks [S, W], counts [slots, V], bias [slots, V], uniform [S], vocab_limit) -> ids [S]
    choose_ids: Callable[[Array, SamplingBatch, Array, Array, Array, Array, int], Array]
    # (logits [S, V], ids [S], num_logprobs [S], vocab_limit, max_logprobs) -> log probability and rank [S], and the
    # most likely ids and their log probabilities [S, max_logprobs]
    log_probabilities: Callable[[Array, Array, Array, int, int], tuple[Array, Array, Array, Array]]


def init_sampler_state(slots: int, vocab_size: int, sharding: Sharding | None = None) -> SamplerState:
    """Return a state of zeros."""
    return SamplerState(
        jnp.zeros(slots, jnp.int32, device=sharding),
        jnp.zeros((slots, vocab_size), jnp.int32, device=sharding),
        jnp.zeros((slots, vocab_size), jnp.float32, device=sharding),
    )
